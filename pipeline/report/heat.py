"""Heat maps: a picture of one point a cell, stretched over the plot, with its axes, its scale and its highest cell
written beside it."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from pipeline.report.colours import TOP, Floats, Scale
from pipeline.report.frame import Axis, chart, counted, line, percent, stretched
from pipeline.report.markup import Child, Html, join, tag

MOST_CELLS = 1024
"""Rows or columns that a picture has at most: of more, neighbours share one, which shows the highest."""
HOVERED = 2_000
"""Cells up to which each says its value where the pointer rests."""


def heat_map(
    title: Child,
    values: Floats,
    scale: Scale,
    x: str,
    y: str,
    said: Callable[[int, int, float], str],
    *,
    mark: str = "Highest",
    groups: int = 0,
    square: bool = False,
) -> Html:
    """`values` [rows, columns]; `x`, `y`: what columns and rows are; `said`: row, column and value in words; `mark`: the
    word before the highest cell, which gets a ring; `groups`: columns (rows too if `square`) that belong together."""
    rows, columns = values.shape
    height = min(max(rows * 24, 48), 480 if square else 240) if rows <= 120 else min(rows * 2, 480)
    row, column = np.unravel_index(int(values.argmax()), values.shape)
    centre = ((column + 0.5) / columns, (row + 0.5) / rows)
    plot = join(
        stretched(columns, rows, _picture(values, scale, columns, rows)),
        *_grid(rows, columns, groups, square),
        tag("circle", cx=percent(centre[0]), cy=percent(centre[1]), r=7, class_="ring"),
        stretched(columns, rows, *_cells(values, said)) if values.size <= HOVERED else None,
    )
    highest = said(int(row), int(column), float(values[row, column]))
    return chart(
        join(title, _key(scale)),
        plot,
        height,
        Axis(f"{x} →", counted(columns)),
        Axis(f"{y} ↓", counted(rows, height // 22)),
        spoken=f"Heat map, {rows} × {columns}: {y} by {x}, {scale.title}. {mark}: {highest}.",
        note=join(tag("span", class_="o"), f"{mark}: {highest}"),
    )


def png(levels: npt.NDArray[np.uint8], scale: Scale) -> str:
    """A data URI of a picture whose points are `levels` of the scale's palette."""
    from PIL import Image

    image = Image.frombytes("P", (levels.shape[1], levels.shape[0]), np.ascontiguousarray(levels).tobytes())
    image.putpalette(scale.palette[:, :3].tobytes())
    out = io.BytesIO()
    image.save(out, "PNG", transparency=scale.palette[:, 3].tobytes())
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"


def pooled(values: Floats, most: int = MOST_CELLS) -> Floats:
    """`values` with at most so many rows and columns, each the highest of those that it stands for."""
    for axis in (0, 1):
        size = values.shape[axis]
        if size > most:
            starts = np.arange(0, size, -(-size // most))
            values = np.maximum.reduceat(values, starts, axis=axis)
    return values


def _picture(values: Floats, scale: Scale, columns: int, rows: int) -> Html:
    return tag(
        "image", href=png(scale.levels(pooled(values)), scale), width=columns, height=rows, preserveAspectRatio="none",
        class_="cells",
    )  # fmt: skip


def _grid(rows: int, columns: int, groups: int, square: bool) -> list[Html]:
    if not groups or columns // groups > 64:
        return []
    across = [line(n / columns, 0, n / columns, 1, "edge") for n in range(groups, columns, groups)]
    return across + ([line(0, n / rows, 1, n / rows, "edge") for n in range(groups, rows, groups)] if square else [])


def _cells(values: Floats, said: Callable[[int, int, float], str]) -> list[Html]:
    return [
        tag("path", tag("title", said(row, column, value)), d=f"M{column} {row}h1v1h-1z", class_="h")
        for row, line_of in enumerate(values.tolist())
        for column, value in enumerate(line_of)
    ]


def _key(scale: Scale) -> Html:
    """The scale itself, with its ends named."""
    strip = png(np.arange(TOP + 1, dtype=np.uint8)[None, :], scale)
    marks = (
        tag("span", said, style=f"left:{percent(at)}", class_="low" if at == 0 else "high" if at == 1 else None)
        for at, said in scale.ticks
    )
    return tag(
        "span",
        tag("span", scale.title, class_="what"),
        tag("span", tag("img", src=strip, alt=""), *marks, class_="strip"),
        class_="key",
    )
