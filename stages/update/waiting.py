"""What waits in a rank's staging in the course of its program: experts that come before their slot may be overwritten."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stages.transfers import Ints
from stages.update.program import NONE, Program


@dataclass(frozen=True)
class Waiting:
    """Experts of one rank that come in batch `stage` (-1: before) and are committed in a later one, `commit`: all `[n]`.
    `row`: where in staging; `place`: one of `places`, which those that wait at the same time do not share."""

    stage: Ints
    commit: Ints
    row: Ints
    place: Ints
    places: int


def waiting(program: Program) -> Waiting:
    """What waits in staging in the course of `program`."""
    batches = len(program)
    arrived = np.repeat(np.arange(batches), np.diff(program.arrivals.begin))
    keys = np.sort(np.append(program.arrivals.row * batches + arrived, NONE))
    from_staging = np.flatnonzero(program.writes.from_row != NONE)
    commit = np.repeat(np.arange(batches), np.diff(program.writes.begin))[from_staging]
    row = program.writes.from_row[from_staging]
    stage = keys[np.searchsorted(keys, row * batches + commit, side="right") - 1] - row * batches
    stage = np.maximum(stage, NONE)  # what the row held from the start
    waits = stage < commit
    stage, commit, row = np.unique(np.stack([stage, commit, row])[:, waits], axis=1)  # free riders read it as well
    place = np.zeros(len(row), dtype=np.int64)
    free_from: list[int] = []
    for n in np.argsort(stage, kind="stable").tolist():  # few: a batch leaves about one a rank
        found = next((p for p, batch in enumerate(free_from) if batch <= stage[n]), len(free_from))
        free_from[found : found + 1] = [int(commit[n])]
        place[n] = found
    return Waiting(stage, commit, row, place, len(free_from))
