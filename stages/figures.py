"""Figures that stages return. matplotlib is imported when one is drawn; no global state, no window."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

MARGINS = 0.8, 0.25, 0.42, 0.55
"""Inches left, right, above and below, for titles, labels and ticks. To let matplotlib find them takes longer than to draw."""
BLUE, ORANGE, GREY = "#2b6cb0", "#dd6b20", "#718096"
TICKS = 6
OTHERS = ("black", "#2f855a", "#b83280")


def heat_map(
    values: npt.NDArray[np.float64], title: str, x: str, y: str, unit: str, *, size: tuple[float, float] = (7, 5)
) -> Figure:
    """Rows of `values` downwards, columns to the right; axes named `y` and `x`, the colour bar `unit`."""
    figure = _figure(size)
    axes = figure.subplots()
    image = axes.imshow(values, aspect="auto", interpolation="nearest", cmap="viridis")
    _name(axes, title, x, y)
    _count(axes.xaxis, axes.yaxis)
    figure.colorbar(image, label=unit)
    return figure


@dataclass(frozen=True)
class Bars:
    """Upright bars over an index, those of a later series narrower and in front, and a line across at `level`."""

    series: dict[str, npt.NDArray[np.float64]]
    level: tuple[str, float]
    title: str
    x: str
    y: str


def side_by_side(
    left: npt.NDArray[np.float64],
    right: npt.NDArray[np.float64],
    titles: tuple[str, str],
    x: str,
    y: str,
    unit: str,
    bars: Bars | None = None,
) -> Figure:
    """Two heat maps with one colour scale, and `bars` below both."""
    figure = _figure((11, 5) if bars is None else (11, 7.5))
    grid = figure.add_gridspec(1 if bars is None else 2, 2, height_ratios=[2] if bars is None else [2, 1])
    first = figure.add_subplot(grid[0, 0])
    both = (first, figure.add_subplot(grid[0, 1], sharey=first))
    both[1].tick_params(labelleft=False)
    low, high = float(min(left.min(), right.min())), float(max(left.max(), right.max()))
    for axes, values, title in zip(both, (left, right), titles, strict=True):
        image = axes.imshow(values, aspect="auto", interpolation="nearest", cmap="viridis", vmin=low, vmax=high)
        _name(axes, title, x)
        _count(axes.xaxis, axes.yaxis)
    first.set_ylabel(y)
    figure.colorbar(image, ax=both, label=unit)
    if bars is not None:
        _draw_bars(figure.add_subplot(grid[1, :]), bars)
    return figure


def _draw_bars(axes: Axes, bars: Bars) -> None:
    """Each series as one shape, since there may be hundreds of bars."""
    from matplotlib.collections import PolyCollection

    name, level = bars.level
    for index, (series, values) in enumerate(bars.series.items()):
        half, x, zero = 0.42 - 0.2 * index, np.arange(len(values)), np.zeros(len(values))
        corners = (x - half, zero), (x - half, values), (x + half, values), (x + half, zero)
        shape = np.stack([np.stack(corner, axis=-1) for corner in corners], axis=1)
        colour = (GREY, BLUE, ORANGE)[index % 3]
        axes.add_collection(PolyCollection(list(shape), facecolor=colour, alpha=1 if index else 0.5, label=series))
        axes.set_xlim(-1, len(values))
    axes.axhline(level, color=ORANGE, linestyle="--", label=name)
    highest = max(level, *(float(values.max()) for values in bars.series.values()))
    axes.set_ylim(0, 1.2 * highest or 1)  # the legend lies above
    _name(axes, bars.title, bars.x, bars.y)
    _count(axes.xaxis)
    axes.legend(frameon=False, ncols=3, fontsize="small", loc="upper right")
    axes.spines[["top", "right"]].set_visible(False)


def lines(
    series: dict[str, npt.NDArray[np.float64]], title: str, x: str, y: str, *, size: tuple[float, float] = (7, 4)
) -> Figure:
    """One line a series over its index, named in a legend."""
    figure = _figure(size)
    axes = figure.subplots()
    for (name, values), colour in zip(series.items(), cycle((GREY, BLUE, ORANGE, *OTHERS)), strict=False):
        axes.plot(values, color=colour, label=name)
    _name(axes, title, x, y)
    _count(axes.xaxis)
    axes.ticklabel_format(axis="y", scilimits=(-4, 5))  # longer numbers would need a wider margin
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
    _name(axes, title, x, y)
    axes.ticklabel_format(axis="y", scilimits=(-4, 5))  # longer numbers would need a wider margin
    axes.legend(frameon=False, loc="lower right")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _name(axes: Axes, title: str, x: str, y: str = "") -> None:
    """Titles. That of `axes` has its place, since for matplotlib to look for one takes long."""
    axes.set_title(title, y=1.0)
    axes.set(xlabel=x, ylabel=y)


def _count(*axes: Axis) -> None:
    """Ticks at whole numbers alone: layers, ranks and experts are counted."""
    from matplotlib.ticker import MaxNLocator

    for axis in axes:
        axis.set_major_locator(MaxNLocator(TICKS, integer=True))


def _figure(size: tuple[float, float]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size)
    width, height = size
    left, right, top, bottom = MARGINS
    figure.subplots_adjust(left / width, bottom / height, 1 - right / width, 1 - top / height, hspace=0.36, wspace=0.06)
    return figure
