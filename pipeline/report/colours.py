"""Colour scales of heat maps. They fade to nothing where there is nothing to see, and so suit a light page and a dark
one; their ends are always written beside them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.report.units import factor

Floats = npt.NDArray[np.float64]
Levels = npt.NDArray[np.uint8]

BLUE, ORANGE = (45, 118, 226), (232, 96, 20)
TOP = 254
MOST_DOUBLINGS, LEAST_DOUBLINGS = 3.0, 0.3219  # 8×, beyond which all is as dark; 1.25×, below which nothing is glaring


@dataclass(frozen=True)
class Scale:
    """`title`: what is shown, with its unit; `palette` [255, 4]: RGBA; `ticks`: place on the scale, from 0 to 1, and what
    is written there; `levels`: values -> indices into the palette."""

    title: str
    palette: npt.NDArray[np.uint8]
    ticks: Sequence[tuple[float, str]]
    levels: Callable[[Floats], Levels]


def around_mean(title: str, most: float) -> Scale:
    """For ratios to a mean, up to `most`: blue below 1, orange above, by doublings and halvings."""
    doublings = float(np.clip(np.log2(most) if most > 0 else 0, LEAST_DOUBLINGS, MOST_DOUBLINGS))

    def levels(values: Floats) -> Levels:
        with np.errstate(divide="ignore"):
            place = np.log2(np.maximum(values, 0)) / doublings
        return np.round((np.clip(place, -1, 1) + 1) / 2 * TOP).astype(np.uint8)

    place = np.linspace(-1, 1, TOP + 1)
    ends = [(0.0, f"≤ {factor(2**-doublings)}"), (0.5, "1×"), (1.0, factor(2**doublings))]
    if most > 2**MOST_DOUBLINGS * 1.001:
        ends[-1] = (1.0, f"≥ {factor(2**doublings)}")
    between = [(at, factor(2.0**n)) for n in (-1, 1) if 0.25 < (at := 0.5 + n / doublings / 2) < 0.8]
    return Scale(
        title, _faded(np.abs(place), np.where(place[:, None] < 0, BLUE, ORANGE)), sorted([*ends, *between]), levels
    )


def from_zero(title: str, most: float, said: Callable[[float], str]) -> Scale:
    """For amounts from 0 (no colour) to `most`; `said`: an amount with its unit."""

    def levels(values: Floats) -> Levels:
        return np.round(np.clip(values / (most or 1.0), 0, 1) * TOP).astype(np.uint8)

    place = np.linspace(0, 1, TOP + 1)
    ticks = [(0.0, said(0.0)), (1.0, said(most))] if most > 0 else [(0.0, said(0.0))]
    return Scale(title, _faded(place, np.broadcast_to(BLUE, (TOP + 1, 3))), ticks, levels)


def counted(title: str, most: int) -> Scale:
    """For counts, of which 1 is the rule and hardly seen, and the first ones above it differ most."""

    def place(count: npt.ArrayLike) -> Floats:
        return np.sqrt(np.clip((np.asarray(count, dtype=np.float64) - 1) / max(most - 1, 1), 0, 1))

    def levels(values: Floats) -> Levels:
        return np.where(values < 1, 0, np.maximum(np.round(place(values) * TOP), 1)).astype(np.uint8)

    shown = sorted({1, 2, most} | ({4} if most >= 9 else set()))
    return Scale(
        title,
        _faded(np.linspace(0, 1, TOP + 1), np.broadcast_to(BLUE, (TOP + 1, 3))),
        [(float(place(count)), f"{count}") for count in shown if count <= most],
        levels,
    )


def _faded(strength: Floats, colour: npt.ArrayLike) -> npt.NDArray[np.uint8]:
    alpha = np.where(strength > 0, 0.06 + 0.94 * strength, 0) * 255
    return np.concatenate([np.asarray(colour), np.round(alpha)[:, None]], axis=1).astype(np.uint8)
