"""The update as Chrome trace events: one process a rank, one span a phase and one for what is done with
each layer or batch. Opens in Perfetto."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from stages import paths
from stages.update.measured import TIMED, Measured
from stages.update.moved import EVENTS

Event = dict[str, object]


def write_trace(folder: Path, measured: Measured) -> tuple[str, ...]:
    paths.write_json(folder / paths.TRACE, {"displayTimeUnit": "ms", "traceEvents": list(_events(measured))})
    return (paths.TRACE,)


def _events(measured: Measured) -> Iterator[Event]:
    for rank, spans in enumerate(measured.spans):
        yield {"name": "process_name", "ph": "M", "pid": rank, "args": {"name": f"rank {rank}"}}
        for phase, (begin, end) in zip(TIMED, spans.tolist(), strict=True):
            yield _span(phase.name.replace("_", " "), rank, begin, end - begin, 0)
        for what, step, begin, end in measured.events[rank].tolist():
            if not math.isnan(what):
                name = EVENTS[int(what)]
                unit = "layer" if name == "layer" else f"{name} batch"
                yield _span(f"{unit} {int(step)}", rank, begin, end - begin, EVENTS.index(name))


def _span(name: str, rank: int, begin: float, seconds: float, lane: int) -> Event:
    micro = 1e6
    return {
        "name": name, "cat": "update", "ph": "X", "pid": rank, "tid": lane,
        "ts": round(begin * micro, 1), "dur": round(seconds * micro, 1),
    }  # fmt: skip
