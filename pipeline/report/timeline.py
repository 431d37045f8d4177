"""The update over time, from its Chrome trace: the phases of every rank, and what each did with the batches."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.report.frame import Axis, Label, chart, counted, line, nice_step, stretched
from pipeline.report.markup import Html, join, tag
from pipeline.report.units import seconds

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

PART = re.compile(r"(?:(\w+) )?(?:batch|layer) \d+")
UPDATE = "update"
GRAIN = 600
"""Steps that the time across a plot is cut into; shorter gaps are closed."""
MOST_RANKS = 128
MICRO = 1e-6


@dataclass(frozen=True)
class Spans:
    """Of one phase or part: rank, begin and end in seconds, of each span [N]."""

    rank: Ints
    begin: Floats
    end: Floats


@dataclass(frozen=True)
class Trace:
    """`phases`: in order of time. `parts`: what was done with the batches (or layers), by name."""

    ranks: int
    phases: dict[str, Spans]
    parts: dict[str, Spans]


def read_trace(path: Path) -> Trace:
    rows: dict[str, list[tuple[int, float, float]]] = {}
    parts: dict[str, list[tuple[int, float, float]]] = {}
    for event in json.loads(path.read_text(encoding="utf-8"))["traceEvents"]:
        if event.get("ph") == "X":
            found = PART.fullmatch(event["name"])
            name = (found[1] or "layer") if found else event["name"]
            begin = event["ts"] * MICRO
            (parts if found else rows).setdefault(name, []).append((event["pid"], begin, begin + event["dur"] * MICRO))
    phases = {name: _spans(found) for name, found in rows.items()}
    ordered = dict(sorted(phases.items(), key=lambda item: float(np.median(item[1].begin))))
    ranks = 1 + max((int(spans.rank.max()) for spans in ordered.values()), default=-1)
    return Trace(ranks, ordered, {name: _spans(found) for name, found in parts.items()})


def phases(trace: Trace) -> Html | None:
    """A row a rank. The update stands out; every phase is named above where it is."""
    shown = {name: spans for name, spans in trace.phases.items() if (spans.end > spans.begin).any()}
    if not shown:
        return None
    first = min(float(spans.begin.min()) for spans in shown.values())
    last = max(float(spans.end.max()) for spans in shown.values())
    rows = min(trace.ranks, MOST_RANKS)
    height = int(min(max(rows * 12, 40), 260))
    shapes = [
        tag("path", d=boxes(spans, first, last, trace.ranks, rows), class_=f"fill {_style(name, n)}")
        for n, (name, spans) in enumerate(shown.items())
    ]
    longest = [float((spans.end - spans.begin).max()) for spans in shown.values()]
    plot = join(stretched(GRAIN, rows, *shapes), *(line(at, 0, at, 1, "edge") for at, _ in _times(first, last)))
    return chart(
        join(
            tag("b", "What each rank did, from first to last"),
            ", with the seconds of the slowest",
            _names(shown, longest),
        ),
        plot,
        height,
        Axis("seconds →", _times(first, last)),
        Axis("rank ↓", counted(trace.ranks, max(1, height // 18))),
        spoken="; ".join(f"{name} {seconds(took)}" for name, took in zip(shown, longest, strict=True)),
    )


def parts(trace: Trace) -> Html | None:
    """A band for each part of the update, and in it a row a rank."""
    shown = {name: spans for name, spans in trace.parts.items() if len(spans.rank)}
    if not shown:
        return None
    first = min(float(spans.begin.min()) for spans in shown.values())
    last = max(float(spans.end.max()) for spans in shown.values())
    rows = min(trace.ranks, MOST_RANKS)
    band = int(min(max(rows * 3, 26), 72))
    height = band * len(shown)
    shapes, edges, labels = [], [], []
    for index, spans in enumerate(shown.values()):
        top = index / len(shown)
        drawn = tag("path", d=boxes(spans, first, last, trace.ranks, rows), class_="fill now")
        inner = stretched(GRAIN, rows, drawn)
        shapes.append(
            tag("svg", inner, y=f"{top * 100 + 0.6:.4g}%", height=f"{100 / len(shown) - 1.2:.4g}%", width="100%")
        )
        edges.append(line(0, top, 1, top, "rule"))
        busy = np.bincount(spans.rank, weights=spans.end - spans.begin, minlength=trace.ranks)
        labels.append(Label(top + 0.5 / len(shown), f"{seconds(float(busy.max()))} at most"))
    y = Axis("", [((index + 0.5) / len(shown), name) for index, name in enumerate(shown)])
    unit, scale = ("seconds", 1.0) if last - first > 2 else ("milliseconds", 1e3)
    x = Axis(f"{unit} →", _times(first, last, scale))
    rank_rows = "each band has a row a rank" if trace.ranks <= rows else f"{trace.ranks} ranks in {rows} rows a band"
    return chart(
        join(tag("b", "Inside the update"), f": what the ranks did with each batch; {rank_rows}. The parts overlap."),
        join(*edges, *shapes),
        height,
        x,
        y,
        spoken="; ".join(f"{name}: {label.words}" for name, label in zip(shown, labels, strict=True)),
        labels=labels,
    )


def boxes(spans: Spans, first: float, last: float, ranks: int, rows: int) -> str:
    """A path of one box a span, in units of `GRAIN` across and one a row downwards; spans that touch are one box."""
    scale = GRAIN / ((last - first) or 1)
    row = spans.rank * rows // ranks
    begin = np.floor((spans.begin - first) * scale).astype(np.int64)
    end = np.maximum(np.ceil((spans.end - first) * scale), begin + 1).astype(np.int64)
    order = np.lexsort((begin, row))
    row, begin, end = row[order], begin[order], end[order]
    # What a row has reached so far: with rows far apart, the greatest end up to here never comes from another row.
    reach = np.maximum.accumulate(end + row * 4 * GRAIN) - row * 4 * GRAIN
    new = np.ones(len(row), dtype=bool)
    new[1:] = (row[1:] != row[:-1]) | (begin[1:] > reach[:-1])
    starts = np.flatnonzero(new)
    stops = np.append(starts[1:], len(row)) - 1
    thin = 0.08 if rows <= 64 else 0.0
    return "".join(
        f"M{b} {r + thin:g}h{e - b}v{1 - 2 * thin:g}h{b - e}z"
        for b, e, r in zip(begin[starts].tolist(), reach[stops].tolist(), row[starts].tolist(), strict=True)
    )


def _spans(found: Sequence[tuple[int, float, float]]) -> Spans:
    rank, begin, end = np.array(found, dtype=np.float64).reshape(-1, 3).T
    return Spans(rank.astype(np.int64), begin, end)


def _style(name: str, index: int) -> str:
    return "now" if name == UPDATE else f"phase{index % 6}"


def _names(shown: Iterable[str], longest: Iterable[float]) -> Html:
    """The phases in their order, each with its colour and what it took at most."""
    items = (
        tag("span", tag("i", class_=f"swatch {_style(name, n)}"), tag("b", name), f" {seconds(took)}")
        for n, (name, took) in enumerate(zip(shown, longest, strict=True))
    )
    return tag("span", *items, class_="sequence")


def _times(first: float, last: float, factor: float = 1.0) -> list[tuple[float, str]]:
    """Round times since `first`."""
    extent = ((last - first) or 1) * factor
    step = nice_step(extent / 6)
    return [(step * n / extent, f"{step * n:g}") for n in range(int(extent / step) + 1)]
