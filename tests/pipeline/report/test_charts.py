"""Charts hold the numbers they are given: pictures are decoded, paths and places measured."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from pipeline.report.colours import TOP, Scale, around_mean, counted, from_zero
from pipeline.report.frame import counted as ticks_of
from pipeline.report.frame import nice_step, spread
from pipeline.report.heat import MOST_CELLS, heat_map, pooled
from pipeline.report.lines import Level, Series, bars, curves, lying
from pipeline.report.units import count, factor, metric, seconds
from tests.pipeline.report.parsed import Node, parse


def decoded(uri: str) -> np.ndarray:
    head, _, data = uri.partition(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGBA"))


def drawn(values: np.ndarray, scale: Scale, **more: object) -> Node:
    said = lambda row, column, value: f"row {row}, column {column}: {value:g}"  # noqa: E731
    return parse(heat_map("t", values, scale, "GPU", "layer", said, **more))  # type: ignore[arg-type]


def test_a_heat_map_has_a_point_a_cell_and_names_its_highest() -> None:
    values = np.array([[1.0, 2.0, 0.5], [1.0, 1.0, 0.0]])
    figure = drawn(values, around_mean("load / mean", 2.0))
    picture = decoded(figure.one("image").attributes["href"])
    assert picture.shape == (2, 3, 4)
    assert picture[0, 0, 3] == picture[1, 0, 3] == 0  # the mean has no colour
    red, _, blue, alpha = picture[0, 1]
    assert red > blue
    assert alpha == 255
    red, _, blue, alpha = picture[0, 2]
    assert blue > red
    assert alpha == 255
    assert tuple(picture[1, 2]) == tuple(picture[0, 2])  # beyond the end of the scale
    assert "Highest: row 0, column 1: 2" in figure.one("p", class_="note").text
    ring = figure.one("circle").attributes
    assert (ring["cx"], ring["cy"]) == ("50%", "25%")
    titles = [node.text for node in figure.all("title")]
    assert titles[0] == "row 0, column 0: 1"
    assert len(titles) == values.size
    assert "Highest: row 0, column 1: 2" in figure.one("svg", role="img").attributes["aria-label"]
    assert [node.text for node in figure.one(class_="x").all("span")] == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("scale", "ticks"),
    [
        (around_mean("t", 1.0), [(0, "≤ 0.8×"), (0.5, "1×"), (1, "1.25×")]),
        (around_mean("t", 2.0), [(0, "≤ 0.5×"), (0.5, "1×"), (1, "2×")]),
        (around_mean("t", 8.0), [(0, "≤ 0.125×"), (1 / 3, "0.5×"), (0.5, "1×"), (2 / 3, "2×"), (1, "8×")]),
        (around_mean("t", 30.0), [(0, "≤ 0.125×"), (1 / 3, "0.5×"), (0.5, "1×"), (2 / 3, "2×"), (1, "≥ 8×")]),
        (from_zero("t", 5.0, "{:g} B".format), [(0, "0 B"), (1, "5 B")]),
        (from_zero("t", 0.0, "{:g} B".format), [(0, "0 B")]),
        (counted("t", 1), [(0, "1")]),
        (counted("t", 2), [(0, "1"), (1, "2")]),
        (counted("t", 10), [(0, "1"), (1 / 3, "2"), (3**-0.5, "4"), (1, "10")]),
    ],
)  # fmt: skip
def test_scales_name_their_ends(scale: Scale, ticks: list[tuple[float, str]]) -> None:
    assert [said for _, said in scale.ticks] == [said for _, said in ticks]
    np.testing.assert_allclose([at for at, _ in scale.ticks], [at for at, _ in ticks], atol=1e-3)
    assert scale.palette.shape == (TOP + 1, 4)


def test_every_count_has_its_own_colour() -> None:
    levels = counted("t", 9).levels(np.arange(10.0))
    assert levels[0] == 0
    assert levels[-1] == TOP
    assert (np.diff(levels.astype(int)) > 0).all()


def test_pictures_of_many_cells_keep_the_highest() -> None:
    values = np.zeros((3, 5 * MOST_CELLS))
    values[2, 4321] = 7.0
    small = pooled(values)
    assert small.shape == (3, MOST_CELLS)
    assert np.argwhere(small == 7).tolist() == [[2, 4321 // 5]]
    assert not drawn(values, from_zero("t", 7.0, str)).all("title")  # too many to say each


@pytest.mark.parametrize("values", [np.zeros((1, 1)), np.ones((1, 4096)), np.zeros((500, 2))])
def test_heat_maps_of_extreme_shapes(values: np.ndarray) -> None:
    figure = drawn(values, around_mean("t", float(values.max())), groups=64)
    assert 40 <= int(figure.one("svg", role="img").attributes["height"]) <= 480


def test_groups_are_set_apart_both_ways_where_rows_and_columns_are_the_same() -> None:
    lines = drawn(np.eye(8), from_zero("t", 1.0, str), groups=4, square=True).all("line", class_="edge")
    assert [(line.attributes["x1"], line.attributes["y1"]) for line in lines] == [("50%", "0%"), ("0%", "50%")]


def heights(path: str, top: float) -> list[float]:
    return [top - float(value) for value in re.findall(r"V([\d.e-]+)h", path)]


def test_bars_are_as_high_as_their_values_and_the_level_is_named() -> None:
    before, after = np.array([2.0, 0.0, 1.0]), np.array([1.25, 1.0, 0.75])
    figure = parse(
        bars("t", [Series(before, "was", "before"), Series(after, "now", "after")], [Level(1.2, "limit", "bound")],
             "GPU", "load", factor, spoken="words", note="below")
    )  # fmt: skip
    first, second = figure.all("path", class_="fill")
    top = 2.0 * 1.06
    np.testing.assert_allclose(heights(first.attributes["d"], top), before, atol=1e-4)
    np.testing.assert_allclose(heights(second.attributes["d"], top), after, atol=1e-4)
    level = figure.one("line", class_="level")
    assert float(level.attributes["y1"].rstrip("%")) == pytest.approx(100 * (1 - 1.2 / top), abs=0.01)
    assert figure.one(class_="right").text == "bound"
    assert figure.all("title")[0].text == "GPU 0: before 2×, after 1.25×"


def test_curves_go_through_their_points_and_end_at_their_names() -> None:
    figure = parse(
        curves(
            "t",
            [Series(np.array([0.0, 4.0]), "now", "a"), Series(np.array([4.0, 3.9]), "was", "b")],
            "x",
            "y",
            str,
            spoken="",
        )
    )
    first = figure.all("polyline")[0].attributes["points"]
    assert first == f"0,1000 1000,{1000 * (1 - 1 / 1.06):.4g}"
    names = figure.one(class_="right").all("span")
    tops = [float(re.findall(r"top:([\d.]+)%", name.attributes["style"])[0]) for name in names]
    assert [name.text for name in names] == ["a", "b"]
    assert tops[1] - tops[0] == pytest.approx(100 * 15 / 190, abs=0.1)  # apart, although the lines end together
    assert parse(curves("t", [Series(np.ones(1), "now", "a")], "x", "y", str, spoken="")).all("polyline")


def test_lying_bars_are_in_proportion() -> None:
    found = parse(lying([("a", 1.0, "1 s", "now"), ("b", 4.0, "4 s", "was"), ("c", 0.0, "0 s", "limit")]))
    assert [bar.attributes["style"] for bar in found.all(class_="bar")] == [
        "width:25.00%",
        "width:100.00%",
        "width:0.00%",
    ]
    assert parse(lying([("a", 0.0, "0 s", "now")])).one(class_="bar").attributes["style"] == "width:0.00%"


@pytest.mark.parametrize(
    ("at", "least", "expected"),
    [
        ([], 0.1, []),
        ([0.5], 0.1, [0.5]),
        ([0.2, 0.8], 0.1, [0.2, 0.8]),
        ([0.5, 0.5, 0.5], 0.1, [0.5, 0.6, 0.7]),
        ([0.99, 0.98], 0.1, [1.0, 0.9]),
    ],
)
def test_labels_are_spread(at: list[float], least: float, expected: list[float]) -> None:
    assert spread(at, least) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("least", "step"), [(0, 1), (0.3, 0.5), (1, 1), (1.1, 2), (3, 5), (6, 10), (0.05, 0.05), (700, 1000)]
)
def test_steps_are_round(least: float, step: float) -> None:
    assert nice_step(least) == pytest.approx(step)


def test_ticks_are_few_and_in_the_middle_of_their_cells() -> None:
    assert ticks_of(2) == [(0.25, "0"), (0.75, "1")]
    many = ticks_of(4096)
    assert len(many) <= 9
    assert many[1] == (500.5 / 4096, "500")


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (seconds(0.0628), "62.8 ms"), (seconds(2.5), "2.5 s"), (seconds(200), "3 min 20 s"), (seconds(1.8e-5), "18 µs"),
        (seconds(0), "0 s"), (factor(1.25), "1.25×"), (factor(22.84), "22.8×"), (factor(4321), "4,321×"), (factor(1), "1×"),
        (count(1, "layer"), "1 layer"), (count(2400, "layer"), "2,400 layers"), (metric("moved_bytes_once", 6.6e8), "660 MB"), (metric("solve_seconds", 0.5), "500 ms"),
        (metric("tokens_per_second", 20000), "20,000"), (metric("gap", 0.125), "0.125"),
    ],
)  # fmt: skip
def test_numbers_have_units(said: str, words: str) -> None:
    assert said == words
