"""What each rank is doing, in a few shared bytes that survive its death."""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path

import numpy as np


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


STEPS = {Phase.update: "layer", Phase.batch: "batch"}


def where(phase: Phase, step: int) -> str:
    """For a sentence such as `rank 3 failed in layer 7`."""
    return f"in {STEPS[phase]} {step}" if phase in STEPS else f"while {DOING[phase]}"


OnReport = Callable[[Phase, int], None]
"""Called with the phase and the layer that a rank has come to."""


def silent(phase: Phase, layer: int) -> None:
    """An `OnReport` that says nothing."""


class ProgressBoard:
    """int64 [R, 3]: phase, layer, and when the rank failed (nanoseconds of this host's clock; 0: it has not)."""

    def __init__(self, path: Path | None, ranks: int, on_report: OnReport = silent) -> None:
        """Over the file `path`, made here if it is not there; in memory if None."""
        self._on_report = on_report
        shape = (ranks, 3)
        if path is None:
            self._rows = np.zeros(shape, dtype=np.int64)
        else:
            self._rows = np.memmap(path, dtype=np.int64, mode="r+" if path.exists() else "w+", shape=shape)

    def report(self, rank: int, phase: Phase, layer: int = 0) -> None:
        self._rows[rank, :2] = phase, layer
        self._on_report(phase, layer)

    def report_failure(self, rank: int) -> None:
        if not self._rows[rank, 2]:
            self._rows[rank, 2] = time.monotonic_ns()

    def of(self, rank: int) -> tuple[Phase, int, int]:
        """Phase, layer and time of failure of one rank."""
        phase, layer, failed_at = self._rows[rank].tolist()
        return Phase(phase), layer, failed_at

    def slowest(self) -> tuple[Phase, int]:
        """Phase and layer of the rank that is furthest behind."""
        phase, layer = min((row[0], row[1]) for row in self._rows.tolist())
        return Phase(phase), layer
