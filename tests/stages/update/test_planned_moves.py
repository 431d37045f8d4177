"""The schedules of the policies, and plans that grow and shrink, carried out by eight real ranks and verified."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stages.direct import direct_transfers
from stages.errors import BadInput
from stages.transfers import Kind
from stages.update.job import make_job
from stages.update.launch import launch
from tests.stages.update.cases import EXPERT_BYTES, TENSORS, Case, job_of, maps_of
from tests.stages.update.rank_entries import run_cases

RANKS = 8
CASES = [
    Case(nodes=2, slots_per_rank=4, experts=9, rows="planned relay"),
    Case(nodes=2, slots_per_rank=4, experts=9, rows="planned direct"),
    Case(nodes=4, slots_per_rank=3, experts=6, kind="empty", rows="planned relay", seed=1),
    Case(nodes=1, slots_per_rank=5, experts=4, rows="planned relay"),
    Case(nodes=2, slots_per_rank=3, experts=12, kind="grow", rows="planned relay"),
    Case(nodes=2, slots_per_rank=3, experts=12, kind="grow", rows="api"),
    Case(nodes=4, slots_per_rank=4, experts=10, kind="shrink", rows="planned relay", seed=1),
    Case(nodes=2, slots_per_rank=4, experts=10, kind="lost", rows="planned relay"),
]


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["reference", "pipelined"])
def test_eight_ranks_run_the_schedules(executor: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cases = [replace(case, staged=None if executor == "reference" else 6) for case in CASES]
    launch(run_cases, (cases, tmp_path / "compared"), RANKS)
    filled = sum(int((m >= 0).sum()) for case in cases for m in maps_of(case, RANKS))
    assert int((tmp_path / "compared").read_text()) == filled * len(TENSORS)


def test_the_cases_hold_what_they_are_for() -> None:
    kinds = [job_of(case, RANKS).plan for case in CASES]
    relayed = [int((plan.kind == Kind.relay).sum()) for plan in kinds]
    assert all((count > 0) == case.rows.endswith("relay") for case, count in zip(CASES, relayed, strict=True))
    assert any((plan.dst_slot == -1).any() for plan in kinds)  # a rail leads through a GPU that keeps nothing
    assert max(int(plan.round.max()) for plan in kinds) > 2


def test_what_nobody_holds_needs_no_rows_only_where_files_bring_it() -> None:
    old, new = np.array([[0, 1, -1, -1]]), np.array([[0, 2, 1, 2]])
    plan = direct_transfers(old, np.where(new == 2, -1, new), 2, 2, EXPERT_BYTES)
    job = make_job(old, new, plan, 2, 2, EXPERT_BYTES, from_files=True)
    assert job.unheld.tolist() == [[False, True, False, True]]
    assert not job.direct
    with pytest.raises(BadInput, match="layer 0 slot 1 needs expert 2 and gets 1 from 0 rows"):
        make_job(old, new, plan, 2, 2, EXPERT_BYTES)
    with pytest.raises(BadInput, match="layer 0 slot 2 needs expert 1"):
        make_job(old, new, plan.select(np.zeros(len(plan), dtype=bool)), 2, 2, EXPERT_BYTES, from_files=True)
