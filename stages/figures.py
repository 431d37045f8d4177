"""Figures that stages return. matplotlib is imported when one is drawn; no global state, no window."""

from __future__ import annotations

from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

BLUE, ORANGE, GREY = "#2b6cb0", "#dd6b20", "#718096"
OTHERS = ("black", "#2f855a", "#b83280")


def heat_map(
    values: npt.NDArray[np.float64], title: str, x: str, y: str, unit: str, *, size: tuple[float, float] = (7, 5)
) -> Figure:
    """Rows of `values` downwards, columns to the right; axes named `y` and `x`, the colour bar `unit`."""
    figure = _figure(size)
    axes = figure.subplots()
    image = axes.imshow(values, aspect="auto", interpolation="nearest", cmap="viridis")
    axes.set(title=title, xlabel=x, ylabel=y)
    _count(axes.xaxis, axes.yaxis)
    figure.colorbar(image, label=unit)
    return figure


def side_by_side(
    left: npt.NDArray[np.float64], right: npt.NDArray[np.float64], titles: tuple[str, str], x: str, y: str, unit: str
) -> Figure:
    """Two heat maps with one colour scale."""
    figure = _figure((11, 5))
    low, high = float(min(left.min(), right.min())), float(max(left.max(), right.max()))
    both = figure.subplots(1, 2, sharey=True)
    for axes, values, title in zip(both, (left, right), titles, strict=True):
        image = axes.imshow(values, aspect="auto", interpolation="nearest", cmap="viridis", vmin=low, vmax=high)
        axes.set(title=title, xlabel=x)
        _count(axes.xaxis, axes.yaxis)
    both[0].set_ylabel(y)
    figure.colorbar(image, ax=both, label=unit)
    return figure


def lines(
    series: dict[str, npt.NDArray[np.float64]], title: str, x: str, y: str, *, size: tuple[float, float] = (7, 4)
) -> Figure:
    """One line a series over its index, named in a legend."""
    figure = _figure(size)
    axes = figure.subplots()
    for (name, values), colour in zip(series.items(), cycle((GREY, BLUE, ORANGE, *OTHERS)), strict=False):
        axes.plot(values, color=colour, label=name)
    axes.set(title=title, xlabel=x, ylabel=y)
    _count(axes.xaxis)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def curves(
    series: dict[str, tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]],
    marks: dict[str, tuple[float, float]],
    title: str,
    x: str,
    y: str,
    *,
    size: tuple[float, float] = (7, 4),
) -> Figure:
    """One line a series of (x, y), and single points on top, all named in a legend."""
    figure = _figure(size)
    axes = figure.subplots()
    for (name, (across, up)), colour in zip(series.items(), cycle((BLUE, ORANGE, GREY, *OTHERS)), strict=False):
        axes.plot(across, up, color=colour, label=name, marker="." if len(across) < 12 else None)
    for (name, point), marker in zip(marks.items(), cycle("oDs^"), strict=False):
        axes.plot(*point, marker, color="black", fillstyle="none", markersize=9, label=name)
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _count(*axes: Axis) -> None:
    """Ticks at whole numbers alone: layers, ranks and experts are counted."""
    from matplotlib.ticker import MaxNLocator

    for axis in axes:
        axis.set_major_locator(MaxNLocator(integer=True))


def _figure(size: tuple[float, float]) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained")
