"""Real updates between real ranks over gloo: every slot holds its expert afterwards, byte for byte."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from stages.update.launch import launch
from tests.stages.update.cases import TENSORS, Case, maps_of
from tests.stages.update.rank_entries import run_cases

CASES = {
    2: [
        Case(nodes=1, slots_per_rank=5, experts=7),
        Case(nodes=2, slots_per_rank=4, experts=8, kind="permutation"),
        Case(nodes=2, slots_per_rank=1, experts=2, kind="permutation"),
        Case(nodes=1, slots_per_rank=6, experts=5, kind="empty"),
        Case(nodes=2, slots_per_rank=6, experts=5, kind="empty", rows="rows"),
    ],
    3: [
        Case(nodes=1, slots_per_rank=4, experts=9),
        Case(nodes=3, slots_per_rank=3, experts=9, kind="permutation"),
        Case(nodes=3, slots_per_rank=5, experts=8, kind="empty"),
        Case(nodes=3, slots_per_rank=4, experts=6, rows="rows"),
        Case(nodes=3, slots_per_rank=4, experts=6, rows="relay"),
    ],
    4: [
        Case(nodes=1, slots_per_rank=1, experts=4, kind="permutation", layers=6),
        Case(nodes=2, slots_per_rank=4, experts=12),
        Case(nodes=4, slots_per_rank=4, experts=10, kind="empty"),
        Case(nodes=2, slots_per_rank=3, experts=12, kind="permutation"),
        Case(nodes=2, slots_per_rank=4, experts=10, kind="empty", rows="rows"),
        Case(nodes=4, slots_per_rank=4, experts=10, rows="relay"),
    ],
    8: [
        Case(nodes=2, slots_per_rank=3, experts=16),
        Case(nodes=4, slots_per_rank=2, experts=16, kind="permutation", layers=2),
        Case(nodes=1, slots_per_rank=1, experts=8, kind="permutation"),
        Case(nodes=4, slots_per_rank=3, experts=12, kind="empty", rows="relay"),
    ],
}


STAGED = {"reference": (None,), "pipelined": (2, 3, 40)}


@pytest.mark.parametrize("executor", STAGED)
@pytest.mark.parametrize("ranks", CASES)
def test_every_slot_holds_its_expert(
    ranks: int, executor: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cases = [replace(case, staged=staged) for case in CASES[ranks] for staged in STAGED[executor]]
    launch(run_cases, (cases, tmp_path / "compared"), ranks)
    filled = sum(int((m >= 0).sum()) for case in cases for m in maps_of(case, ranks))
    assert int((tmp_path / "compared").read_text()) == filled * len(TENSORS)
