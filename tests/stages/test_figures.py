"""Figures show what they are given, name their axes, and draw without a word."""

from __future__ import annotations

import io

import numpy as np
import pytest
from matplotlib.figure import Figure

from stages.figures import Bars, curves, heat_map, lines, side_by_side


def png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=50)
    return stream.getvalue()


@pytest.mark.parametrize("values", [np.arange(12.0).reshape(3, 4), np.zeros((2, 2)), np.ones((1, 1))])
def test_heat_map(values: np.ndarray) -> None:
    figure = heat_map(values, "title", "slot", "layer", "GB")
    axes, bar = figure.axes
    assert (axes.get_title(), axes.get_xlabel(), axes.get_ylabel()) == ("title", "slot", "layer")
    assert bar.get_ylabel() == "GB"
    np.testing.assert_array_equal(axes.images[0].get_array(), values)
    assert png(figure).startswith(b"\x89PNG")


def test_side_by_side_has_one_scale() -> None:
    low, high = np.zeros((2, 3)), np.full((2, 3), 7.0)
    figure = side_by_side(low, high, ("before", "after"), "rank", "layer", "tokens")
    left, right, _ = figure.axes
    assert [axes.get_title() for axes in (left, right)] == ["before", "after"]
    assert left.images[0].get_clim() == right.images[0].get_clim() == (0.0, 7.0)
    assert png(figure).startswith(b"\x89PNG")


def test_bars_below_two_heat_maps_have_their_level() -> None:
    bars = Bars(
        {"before": np.array([2.0, 1.0]), "after": np.array([1.5, 1.5])}, ("bound", 1.4), "layer 3", "GPU", "load / mean"
    )
    figure = side_by_side(np.eye(2), np.eye(2), ("a", "b"), "x", "y", "unit", bars)
    *_, axes = figure.axes
    shapes = [[path.get_extents() for path in shape.get_paths()] for shape in axes.collections]
    assert [[(box.y0, box.y1) for box in boxes] for boxes in shapes] == [[(0, 2), (0, 1)], [(0, 1.5), (0, 1.5)]]
    for index in range(2):  # the later series is narrower, and in front
        (wide, narrow) = (boxes[index] for boxes in shapes)
        assert wide.x0 < narrow.x0 < index < narrow.x1 < wide.x1
    assert axes.get_ylim()[1] > 2
    assert axes.lines[0].get_ydata() == [1.4, 1.4]
    legend = axes.get_legend()
    assert legend is not None
    assert {text.get_text() for text in legend.get_texts()} == {"before", "after", "bound"}
    assert (axes.get_title(), axes.get_xlabel(), axes.get_ylabel()) == ("layer 3", "GPU", "load / mean")
    assert png(figure).startswith(b"\x89PNG")


def test_lines_draws_every_series() -> None:
    series = {f"series {n}": np.arange(5.0) * n for n in range(6)}
    figure = lines(series, "title", "window", "balancedness")
    (axes,) = figure.axes
    assert len(axes.lines) == 6
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == list(series)
    assert png(figure).startswith(b"\x89PNG")


def test_no_two_of_six_lines_look_alike() -> None:
    (axes,) = lines({f"series {n}": np.arange(3.0) for n in range(6)}, "title", "x", "y").axes
    assert len({line.get_color() for line in axes.lines}) == 6


def test_curves_have_their_points_and_marks() -> None:
    series = {"a": (np.array([0.0, 2.0, 5.0]), np.array([1.0, 3.0, 2.0])), "b": (np.arange(20.0), np.arange(20.0))}
    (axes,) = curves(series, {"here": (2.0, 3.0)}, "title", "moved", "balancedness").axes
    assert axes.lines[0].get_xydata().tolist() == [[0, 1], [2, 3], [5, 2]]
    assert axes.lines[2].get_xydata().tolist() == [[2, 3]]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["a", "b", "here"]
