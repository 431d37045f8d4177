"""Bars and lines over an index, with a scale that begins at 0, and every line named where it ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.report.frame import Axis, Floats, Label, chart, counted, line, nice_step, stretched
from pipeline.report.markup import Child, Html, join, tag

HEIGHT = 190


@dataclass(frozen=True)
class Series:
    """`values` over an index, in the colour of the class `style`; `label` is written at the end of a line."""

    values: Floats
    style: str
    label: str = ""


@dataclass(frozen=True)
class Level:
    """A straight line across at `value`, named beside it."""

    value: float
    style: str
    label: str


def bars(
    title: Child,
    series: Sequence[Series],
    levels: Sequence[Level],
    x: str,
    y: str,
    said: Callable[[float], str],
    *,
    spoken: str,
    groups: int = 0,
    note: Child = None,
) -> Html:
    """Upright bars; those of a later series stand, narrower, before those of an earlier one. `groups`: so many belong
    together. `said`: a value in words."""
    number = len(series[0].values)
    top = _top([*(one.values for one in series), np.array([level.value for level in levels])])
    shapes = []
    for index, one in enumerate(series):
        inset = 0.08 + 0.2 * index
        path = "".join(
            f"M{place + inset:g} {top:.5g}V{top - value:.5g}h{1 - 2 * inset:g}V{top:.5g}z"
            for place, value in enumerate(one.values.tolist())
        )
        shapes.append(tag("path", d=path, class_=f"fill {one.style}"))
    edges = [line(n / number, 0, n / number, 1, "edge") for n in range(groups, number, groups)] if groups else []
    plot = join(
        *_rules(top),
        *(edges if len(edges) < 64 else []),
        stretched(number, top, *shapes),
        *(line(0, 1 - level.value / top, 1, 1 - level.value / top, f"level {level.style}") for level in levels),
        stretched(number, top, *_columns(series, top, x, said)) if number <= 512 else None,
    )
    labels = [Label(1 - level.value / top, level.label, level.style) for level in levels]
    return chart(
        title, plot, HEIGHT, Axis(f"{x} →", counted(number)), Axis(y, _ticks(top, said)), spoken=spoken, labels=labels, note=note
    )  # fmt: skip


def curves(
    title: Child,
    series: Sequence[Series],
    x: str,
    y: str,
    said: Callable[[float], str],
    *,
    spoken: str,
    note: Child = None,
) -> Html:
    number = len(series[0].values)
    top = _top([one.values for one in series])
    shapes = []
    for one in series:
        values = one.values if number > 1 else np.repeat(one.values, 2)
        across = np.linspace(0, 1000, len(values))
        points = " ".join(f"{a:.4g},{(1 - v / top) * 1000:.4g}" for a, v in zip(across, values.tolist(), strict=True))
        shapes.append(tag("polyline", points=points, class_=f"curve {one.style}"))
    labels = [Label(1 - float(one.values[-1]) / top, one.label, one.style) for one in series]
    step = nice_step((number - 1) / 8) if number > 9 else 1
    ticks = [(n / max(number - 1, 1), f"{n:,}") for n in range(0, number, max(1, round(step)))]
    return chart(
        title, join(*_rules(top), stretched(1000, 1000, *shapes)), HEIGHT, Axis(f"{x} →", ticks), Axis(y, _ticks(top, said)),
        spoken=spoken, labels=labels, note=note,
    )  # fmt: skip


def lying(rows: Sequence[tuple[str, float, str, str]]) -> Html:
    """Bars that lie: name, value, the value in words, and the class of the colour."""
    top = max((value for _, value, _, _ in rows), default=0) or 1
    cells: list[Html] = []
    for name, value, said, style in rows:
        bar = tag("span", class_=f"bar {style}", style=f"width:{value / top:.2%}")
        cells += [tag("div", name), tag("div", bar, class_="track"), tag("div", said, class_="n")]
    return tag("div", *cells, class_="lying")


def _columns(series: Sequence[Series], top: float, x: str, said: Callable[[float], str]) -> list[Html]:
    """Unseen, over each place: what its bars say where the pointer rests."""
    rows = np.stack([one.values for one in series], axis=1).tolist()
    names = [one.label for one in series]
    return [
        tag(
            "path",
            tag(
                "title", f"{x} {place}: " + ", ".join(f"{n} {said(v)}".strip() for n, v in zip(names, row, strict=True))
            ),
            d=f"M{place} 0h1v{top:.5g}h-1z",
            class_="h",
        )
        for place, row in enumerate(rows)
    ]


def _top(values: Sequence[Floats]) -> float:
    most = max((float(one.max(initial=0)) for one in values), default=0)
    return most * 1.06 if most > 0 else 1.0


def _steps(top: float) -> list[float]:
    step = nice_step(top / 4.5)
    return [step * n for n in range(int(top / step) + 1)]


def _ticks(top: float, said: Callable[[float], str]) -> list[tuple[float, str]]:
    return [(1 - value / top, said(value)) for value in _steps(top)]


def _rules(top: float) -> list[Html]:
    return [line(0, 1 - value / top, 1, 1 - value / top, "rule") for value in _steps(top)]
