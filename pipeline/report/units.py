"""Numbers as people read them, each with its unit."""

from __future__ import annotations

import math

from pipeline.headline import bytes_text

__all__ = ["bytes_text", "count", "factor", "metric", "seconds", "share"]


def seconds(value: float) -> str:
    """`0.0628 s`, `62.8 ms`, `18 µs`, `3 min 20 s`."""
    if value >= 120:
        return f"{value // 60:.0f} min {value % 60:.0f} s"
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value * 1e6:.3g} µs" if value else "0 s"


def factor(value: float) -> str:
    """`1.25×`: how many times the mean."""
    return f"{value:.3g}×" if value < 1000 else f"{value:,.0f}×"


def count(number: float, what: str) -> str:
    """`1 layer`, `24 layers`."""
    return f"{number:,.0f} {what}{'' if number == 1 else 's'}"


def metric(name: str, value: float) -> str:
    """`value` with the unit that a metric of that name has: `moved_bytes`, `update_seconds`; a plain number otherwise."""
    words = name.split("_")
    if "per" not in words and "bytes" in words:
        return bytes_text(value)
    return seconds(value) if "per" not in words and "seconds" in words else f"{value:,.6g}"


def share(value: float) -> str:
    return f"{value:.1%}" if math.isfinite(value) else "–"
