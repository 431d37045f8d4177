"""The timeline is that of the trace: compared, step by step, with a plain loop."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from pipeline.report.timeline import GRAIN, Spans, boxes, parts, phases, read_trace
from stages import paths
from stages.update.measured import TIMED
from stages.update.moved import EVENTS
from stages.update.trace import write_trace
from tests.pipeline.report.made import measured
from tests.pipeline.report.parsed import parse


def covered(path: str, rows: int) -> np.ndarray:
    """[rows, GRAIN]: how often a path of boxes covers each step."""
    out = np.zeros((rows, GRAIN), dtype=int)
    for begin, row, length in re.findall(r"M(\d+) ([\d.]+)h(\d+)", path):
        out[int(float(row)), int(begin) : int(begin) + int(length)] += 1
    return out


@pytest.mark.parametrize(("ranks", "rows", "number"), [(1, 1, 1), (4, 4, 60), (6, 3, 40), (100, 100, 900)])
def test_boxes_cover_what_the_spans_cover(ranks: int, rows: int, number: int) -> None:
    rng = np.random.default_rng(number)
    begin = rng.uniform(0, 9, number)
    spans = Spans(rng.integers(0, ranks, number), begin, np.minimum(begin + rng.exponential(0.3, number), 10))
    expected = np.zeros((rows, GRAIN), dtype=bool)
    for rank, start, end in zip(spans.rank, spans.begin, spans.end, strict=True):
        first = int(np.floor(start / 10 * GRAIN))
        expected[rank * rows // ranks, first : max(int(np.ceil(end / 10 * GRAIN)), first + 1)] = True
    found = covered(boxes(spans, 0.0, 10.0, ranks, rows), rows)
    assert found.max() == 1  # spans that touch are one box
    np.testing.assert_array_equal(found > 0, expected)


def test_a_trace_is_read_as_it_was_measured(tmp_path: Path) -> None:
    found = measured(ranks=3, batches=4)
    write_trace(tmp_path, found)
    trace = read_trace(tmp_path / paths.TRACE)
    assert trace.ranks == 3
    assert list(trace.phases) == [phase.name.replace("_", " ") for phase in TIMED]
    for index, spans in enumerate(trace.phases.values()):
        np.testing.assert_allclose(np.stack([spans.begin, spans.end], axis=1), found.spans[:, index], atol=1e-6)
    assert set(trace.parts) == set(EVENTS[1:])
    for name, spans in trace.parts.items():
        total = np.bincount(spans.rank, weights=spans.end - spans.begin)
        np.testing.assert_allclose(total, found.event_seconds(name).sum(axis=1), atol=1e-5)
    drawn = phases(trace)
    assert drawn is not None
    page = parse(drawn)
    assert [node.text for node in page.one(class_="sequence").all("b")] == list(trace.phases)
    inside = parts(trace)
    assert inside is not None
    bands = parse(inside)
    assert [span.text for span in bands.one(class_="y").all("span")] == list(trace.parts)
    assert len(bands.one(class_="right").all("span")) == len(trace.parts)


def test_layers_of_the_reference_executor(tmp_path: Path) -> None:
    (tmp_path / paths.TRACE).write_text(
        '{"traceEvents": [{"name": "layer 0", "ph": "X", "pid": 1, "ts": 5.0, "dur": 2.0},'
        '{"name": "update", "ph": "X", "pid": 1, "ts": 0.0, "dur": 9.0}, {"name": "process_name", "ph": "M", "pid": 1}]}'
    )
    trace = read_trace(tmp_path / paths.TRACE)
    assert list(trace.parts) == ["layer"]
    assert trace.parts["layer"].end.tolist() == pytest.approx([7e-6])
    assert trace.ranks == 2


def test_a_trace_without_spans_draws_nothing(tmp_path: Path) -> None:
    (tmp_path / paths.TRACE).write_text('{"traceEvents": []}')
    trace = read_trace(tmp_path / paths.TRACE)
    assert phases(trace) is None
    assert parts(trace) is None
