"""What each rank is doing, in a few shared bytes that survive its death."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import numpy as np

from stages.contract import Count


class Phase(IntEnum):
    """In the order in which a rank goes through them. `update` goes by layers, `batch` by batches: one of them is used."""

    start = 0
    connect = 1
    allocate = 2
    fill = 3
    checksum_before = 4
    outputs_before = 5
    link = 6
    compile = 7
    update = 8
    batch = 9
    checksum_after = 10
    outputs_after = 11
    save = 12
    done = 13


DOING = {
    Phase.start: "starting",
    Phase.connect: "connecting to peers",
    Phase.allocate: "allocating slots",
    Phase.fill: "filling slots",
    Phase.checksum_before: "hashing slots before the update",
    Phase.outputs_before: "sending tokens through the experts before the update",
    Phase.link: "measuring the link",
    Phase.compile: "compiling its program",
    Phase.update: "updating",
    Phase.batch: "updating",
    Phase.checksum_after: "hashing slots after the update",
    Phase.outputs_after: "sending tokens through the experts after the update",
    Phase.save: "saving the slots",
    Phase.done: "finishing",
}

NBYTES, ALL_BYTES, FAILED_AT = 3, 4, 5

STEPS = {Phase.update: "layer", Phase.batch: "batch"}


def where(phase: Phase, step: int) -> str:
    """For a sentence such as `rank 3 failed in layer 7`."""
    return f"in {STEPS[phase]} {step}" if phase in STEPS else f"while {DOING[phase]}"


UNITS = {Phase.fill: "layers", Phase.update: "layers", Phase.batch: "batches"}


@dataclass(frozen=True)
class Report:
    """How far the ranks are: the `phase` and the `step` of the one that is furthest behind, of `steps` in the phase (0:
    it does not count them), and how many of `all_bytes` have arrived at all ranks that are heard."""

    phase: Phase
    step: int = 0
    steps: int = 0
    nbytes: int = 0
    all_bytes: int = 0

    @property
    def fraction(self) -> float:
        """Of all phases, as if each took as long."""
        return min(1.0, (self.phase + self.step / max(1, self.steps)) / (len(Phase) - 1))

    @property
    def counts(self) -> list[Count]:
        if self.phase not in UNITS or not self.steps:
            return []
        steps = [Count(UNITS[self.phase], self.step, self.steps)]
        return [*steps, Count("bytes", self.nbytes, self.all_bytes)] if self.phase == Phase.batch else steps


OnReport = Callable[[Report], None]


def silent(report: Report) -> None:
    """An `OnReport` that says nothing."""


class ProgressBoard:
    """int64 [R, 6]: phase, step, steps, bytes and all bytes of a `Report`, and when the rank failed (nanoseconds of this
    host's clock; 0: it has not)."""

    def __init__(self, path: Path | None, ranks: int, on_report: OnReport = silent) -> None:
        """Over the file `path`, made here if it is not there; in memory if None."""
        self._on_report = on_report
        shape = (ranks, FAILED_AT + 1)
        if path is None:
            self._rows = np.zeros(shape, dtype=np.int64)
        else:
            self._rows = np.memmap(path, dtype=np.int64, mode="r+" if path.exists() else "w+", shape=shape)

    def report(self, rank: int, report: Report) -> None:
        self._rows[rank, :NBYTES] = report.phase, report.step, report.steps
        if report.all_bytes:  # what arrived stays when the rank goes on to its next phase
            self._rows[rank, NBYTES:FAILED_AT] = report.nbytes, report.all_bytes
        self._on_report(report)

    def report_failure(self, rank: int) -> None:
        if not self._rows[rank, FAILED_AT]:
            self._rows[rank, FAILED_AT] = time.monotonic_ns()

    def of(self, rank: int) -> tuple[Phase, int, int]:
        """Phase, step and time of failure of one rank."""
        phase, step, *_, failed_at = self._rows[rank].tolist()
        return Phase(phase), step, failed_at

    def overall(self) -> Report:
        """Of all ranks."""
        rows = self._rows.tolist()
        phase, step, steps, *_ = min(rows)
        return Report(Phase(phase), step, steps, sum(row[NBYTES] for row in rows), sum(row[ALL_BYTES] for row in rows))
