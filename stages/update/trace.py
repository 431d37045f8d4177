"""The update as Chrome trace events: one process a rank, one span a phase and a layer. Opens in Perfetto."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from stages import paths
from stages.update.measured import TIMED, Measured
from stages.update.progress_board import Phase

Event = dict[str, object]


def write_trace(folder: Path, measured: Measured) -> tuple[str, ...]:
    paths.write_json(folder / paths.TRACE, {"displayTimeUnit": "ms", "traceEvents": list(_events(measured))})
    return (paths.TRACE,)


def _events(measured: Measured) -> Iterator[Event]:
    update = TIMED.index(Phase.update)
    for rank, spans in enumerate(measured.spans):
        yield {"name": "process_name", "ph": "M", "pid": rank, "args": {"name": f"rank {rank}"}}
        for phase, (begin, end) in zip(TIMED, spans.tolist(), strict=True):
            yield _span(phase.name.replace("_", " "), rank, begin, end - begin)
        layers = measured.layer_seconds[rank].tolist()
        begin = spans[update, 1] - sum(layers)
        for layer, seconds in enumerate(layers):
            yield _span(f"layer {layer}", rank, begin, seconds)
            begin += seconds


def _span(name: str, rank: int, begin: float, seconds: float) -> Event:
    micro = 1e6
    return {
        "name": name, "cat": "update", "ph": "X", "pid": rank, "tid": 0,
        "ts": round(begin * micro, 1), "dur": round(seconds * micro, 1),
    }  # fmt: skip
