"""Retries, and where they end."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from stages.update.lane import Fault
from stages.update.pipelined import Outcome, run_batches


@dataclass
class Lane:
    """Runs batches, of which batch b arrives wrong `wrong[b]` times."""

    wrong: dict[int, int]
    attempts: list[int] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)

    def attempt(self, first: int) -> int:
        self.attempts.append(first)
        for batch in range(first, 6):
            if self.wrong.get(batch, 0):
                self.wrong[batch] -= 1
                self.faults = [Fault(batch, 0, 0, 0, 1, 2, 3)]
                return batch
        self.faults = []
        return 6

    get_ready = stage = commit = drain = staged = None  # type: ignore[assignment]


@pytest.mark.parametrize(
    ("wrong", "retries", "attempts", "committed", "resent"),
    [
        ({}, 2, [0], 6, 0),
        ({0: 1}, 2, [0, 0], 6, 1),
        ({3: 2}, 2, [0, 3, 3], 6, 2),
        ({3: 3}, 2, [0, 3, 3], 3, 2),
        ({3: 1}, 0, [0], 3, 0),
        ({1: 2, 2: 2, 5: 1}, 2, [0, 1, 1, 2, 2, 5], 6, 5),  # each batch has its own tries
        ({1: 1, 5: 9}, 1, [0, 1, 5], 5, 2),
    ],
)
def test_each_batch_is_sent_again_so_often(
    wrong: dict[int, int], retries: int, attempts: list[int], committed: int, resent: int
) -> None:
    lane = Lane(dict(wrong))
    outcome = run_batches(lane, 6, 0, retries)  # type: ignore[arg-type]
    assert lane.attempts == attempts
    assert (outcome.committed, outcome.resent) == (committed, resent)
    assert [fault.batch for fault in outcome.faults] == ([] if committed == 6 else [committed])


def test_it_begins_where_an_earlier_run_ended() -> None:
    lane = Lane({1: 5})
    assert run_batches(lane, 6, 2, 0) == Outcome(6, [], 0)  # type: ignore[arg-type]
    assert lane.attempts == [2]
    assert run_batches(lane, 6, 6, 0) == Outcome(6, [], 0)  # type: ignore[arg-type]
