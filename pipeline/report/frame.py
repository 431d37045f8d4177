"""The frame of every chart: a plot that takes the width it is given, while its words keep the size of the page's text.

Inside the plot words and lines are placed in percent; shapes lie in a stretched box (`stretched`). So a chart is as
readable on a phone as on a wide screen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.report.markup import Child, Html, tag

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Axis:
    """`ticks`: where along the axis, from 0 to 1 (left to right, top to bottom), and what is written there."""

    title: str = ""
    ticks: Sequence[tuple[float, str]] = ()


@dataclass(frozen=True)
class Label:
    """Words to the right of a plot at a height from 0 to 1, in the colour of what they name."""

    at: float
    words: str
    style: str = ""


def chart(
    title: Child,
    plot: Html,
    height: int,
    x: Axis,
    y: Axis,
    *,
    spoken: str,
    labels: Sequence[Label] = (),
    note: Child = None,
) -> Html:
    """A figure. `plot`: SVG; `spoken`: what it shows, for those who cannot see it; `note`: a line below."""
    left = max((len(words) for _, words in y.ticks), default=0)
    right = max((len(label.words) for label in labels), default=0)
    area = tag("svg", plot, width="100%", height=height, role="img", aria_label=spoken)
    cells = [
        tag("div", *(_tick("top", at, words) for at, words in y.ticks), class_="y", style=f"width:{left * 0.62:.1f}em"),
        tag("div", area, class_="area"),
        _right(labels, height) if labels else None,
    ]
    columns = "auto minmax(0,1fr)" + (f" {min(right * 0.64, 11):.1f}em" if labels else "")
    box = tag(
        "div",
        tag("div", y.title, class_="ytitle"),
        *cells,
        tag("div", *(_tick("left", at, words) for at, words in x.ticks), class_="x"),
        tag("div", x.title, class_="xtitle"),
        class_="plot",
        style=f"grid-template-columns:{columns}",
    )
    return tag("figure", tag("figcaption", title), box, tag("p", note, class_="note") if note else None)


def stretched(width: float, height: float, *shapes: Child) -> Html:
    """Shapes in a box of `width` x `height` units that fills the plot, whatever its proportions."""
    return tag(
        "svg", *shapes, viewBox=f"0 0 {width:g} {height:g}", preserveAspectRatio="none", width="100%", height="100%"
    )


def line(x1: float, y1: float, x2: float, y2: float, style: str) -> Html:
    """A straight line; coordinates from 0 to 1 of the plot."""
    return tag("line", x1=percent(x1), y1=percent(y1), x2=percent(x2), y2=percent(y2), class_=style)


def percent(fraction: float) -> str:
    return f"{fraction * 100:.4g}%"


def counted(number: int, most: int = 9) -> list[tuple[float, str]]:
    """Ticks at the middle of some of `number` cells, at round indices."""
    step = nice_step(number / most) if number > most else 1
    return [((index + 0.5) / number, f"{index:,}") for index in range(0, number, max(1, round(step)))]


def nice_step(least: float) -> float:
    """The smallest of 1, 2, 5, 10, 20 … that is not below `least`."""
    if least <= 0:
        return 1.0
    power = 10.0 ** np.floor(np.log10(least))
    return float(next(power * n for n in (1, 2, 5, 10) if power * n >= least * (1 - 1e-9)))


def spread(at: Sequence[float], least: float) -> list[float]:
    """The places nearest to `at`, in 0 to 1, that lie `least` apart; in the order of `at`."""
    order = np.argsort(at, kind="stable")
    out = np.asarray(at, dtype=np.float64)[order]
    for index in range(1, len(out)):
        out[index] = max(out[index], out[index - 1] + least)
    if len(out) and out[-1] > 1:
        out[-1] = 1.0
        for index in range(len(out) - 2, -1, -1):
            out[index] = min(out[index], out[index + 1] - least)
    placed = np.empty(len(out))
    placed[order] = out
    return [float(value) for value in placed]


def _tick(side: str, at: float, said: str) -> Html:
    return tag("span", said, style=f"{side}:{percent(at)}")


def _right(labels: Sequence[Label], height: int) -> Html:
    places = spread([label.at for label in labels], 15 / height)
    spans = (
        tag("span", label.words, style=f"top:{percent(at)}", class_=label.style)
        for at, label in zip(places, labels, strict=True)
    )
    return tag("div", *spans, class_="right")


def named(said: str, style: str) -> Html:
    return tag("b", said, class_=style)
