"""What waits in staging, read off a rank's program, against the plan's batches."""

from __future__ import annotations

import numpy as np
import pytest

from stages.batches import cut
from stages.update.program import compile_program
from stages.update.waiting import waiting
from tests.stages.update.cases import Case, job_of

CASES = [
    Case(nodes=2, slots_per_rank=6, experts=12, layers=4, kind="permutation"),
    Case(nodes=1, slots_per_rank=6, experts=8, layers=3),
    Case(nodes=2, slots_per_rank=5, experts=10, layers=6, rows="relay"),
]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("rows", "at_once"), [(2, 1), (3, 1), (8, 2), (40, 10)])
def test_all_that_waits_has_a_place_of_its_own(case: Case, rows: int, at_once: int) -> None:
    job = job_of(case, 4)
    batches = cut(job.plan, job.layers, job.slots, job.ranks, rows=rows, at_once=at_once)
    waits = job.plan.network & (job.plan.dst_slot >= 0) & (batches.stage < batches.commit)
    for rank in range(job.ranks):
        found = waiting(compile_program(job.plan, batches, rank, job.slots_per_rank))
        mine = np.flatnonzero(waits & (job.plan.dst_rank == rank))
        expected = zip(batches.stage[mine], batches.commit[mine], batches.row[mine], strict=True)
        assert sorted(zip(found.stage, found.commit, found.row, strict=True)) == sorted(expected)
        at_batch = [(found.stage < batch) & (batch <= found.commit) for batch in range(len(batches))]
        for there in at_batch:
            assert len(set(found.place[there])) == there.sum()
        assert found.places == max((int(there.sum()) for there in at_batch), default=0)
