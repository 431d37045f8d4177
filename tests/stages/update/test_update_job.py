"""The job of an update: a plan that does not fit its maps is refused; bytes are counted; nothing is lost on the way."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings

from stages.direct import direct_transfers
from stages.errors import BadInput
from stages.expert_map import moved_slots
from stages.placement import Placement, write_placement
from stages.transfers import COLUMNS, TransferPlan, write_transfers
from stages.update.job import Job, make_job, read_job
from tests.stages.maps import MapPair, map_pairs

OLD = np.array([[0, 1, 2, 3], [3, 2, 1, 0]])
NEW = np.array([[1, 0, 3, 2], [3, 2, 1, -1]])
PLAN = direct_transfers(OLD, NEW, 2, 2, 10)


def changed(row: int, **values: int) -> TransferPlan:
    columns = {name: getattr(PLAN, name).copy() for name in COLUMNS}
    for name, value in values.items():
        columns[name][row] = value
    return TransferPlan(**columns)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(map_pairs())
def test_any_direct_plan_is_accepted_and_counted(maps: MapPair) -> None:
    plan = direct_transfers(maps.old, maps.new, maps.ranks, maps.gpus_per_node, 10)
    job = make_job(maps.old, maps.new, plan, maps.ranks, maps.gpus_per_node, 10)
    assert job.direct
    assert job.received_bytes().sum() == 10 * moved_slots(maps.old, maps.new, maps.experts, maps.ranks)
    assert job.received_bytes().sum() == job.sent_bytes().sum()
    again = Job.from_bytes(job.to_bytes())
    assert (again.ranks, again.direct, again.slots_per_rank) == (job.ranks, True, job.slots_per_rank)
    assert again.folder == ""
    assert Job.from_bytes(replace(job, folder="/some/where").to_bytes()).folder == "/some/where"
    assert np.array_equal(again.old, job.old)
    assert np.array_equal(again.new, job.new)
    assert all(np.array_equal(getattr(again.plan, name), getattr(plan, name)) for name in COLUMNS)


def test_another_plan_that_leads_there_runs_from_its_rows() -> None:
    old, new = np.array([[0, 0, 1]]), np.array([[0, 0, 0]])
    plan = direct_transfers(old, new, 3, 3, 10)
    assert make_job(old, new, plan, 3, 3, 10).direct
    other = replace(plan, src_rank=1 - plan.src_rank, src_slot=1 - plan.src_slot)
    assert not make_job(old, new, other, 3, 3, 10).direct


def test_a_direct_plan_is_one_in_any_rounds_and_order() -> None:
    turned = PLAN.select(np.arange(len(PLAN))[::-1])
    assert make_job(OLD, NEW, replace(turned, round=np.arange(len(PLAN))), 2, 2, 10).direct


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (PLAN.select(np.arange(1, 4)), "does not lead to placement.safetensors: layer 0 slot 1 needs expert 0"),
        (PLAN.select(np.array([0, 0, 1, 2, 3])), "layer 0 slot 1 needs expert 0 and gets 0 from 2 rows"),
        (changed(0, logical_expert=3), "layer 0 slot 1 needs expert 0 and gets 3 from 1 rows"),
        (changed(1, layer=2), "row 1 (layer 2, logical_expert 1"),
        (changed(2, dst_rank=0), "row 2 (layer 0, logical_expert 2"),
        (changed(2, src_slot=4), "is not possible with 2 layers, 4 slots and 2 ranks."),
        (changed(3, src_slot=-1), "row 3 (layer 0, logical_expert 3"),
        (changed(3, bytes=11), "row 3 moves 11 bytes, an expert of the model has 10: the plan was made for another"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(plan: TransferPlan, message: str) -> None:
    with pytest.raises(BadInput) as caught:
        make_job(OLD, NEW, plan, 2, 2, 10)
    assert message in str(caught.value)
    assert str(caught.value).startswith("transfers.parquet")


@pytest.mark.parametrize(
    ("old", "new", "ranks", "message"),
    [
        (OLD, NEW[:1], 2, "the current map has shape [2, 4], the new one [1, 4]"),
        (OLD, NEW, 3, "4 slots do not divide evenly over 3 ranks."),
        (OLD, np.where(NEW < 0, -2, NEW), 2, "physical_to_logical_map: layer 1 slot 3 holds expert -2"),
    ],
)
def test_maps_that_do_not_fit_are_refused(old: np.ndarray, new: np.ndarray, ranks: int, message: str) -> None:
    with pytest.raises(BadInput) as caught:
        make_job(old, new, PLAN, ranks, 2, 10)
    assert message in str(caught.value)


def test_a_new_expert_from_nowhere_needs_rows_that_bring_it() -> None:
    """direct_transfers finds no source for it: such a plan can only be run from its rows."""
    new = np.where(NEW == 1, 4, NEW)
    plan = replace(PLAN, logical_expert=np.where(PLAN.logical_expert == 1, 4, PLAN.logical_expert))
    with pytest.raises(BadInput, match="layer 1 slot 2 needs expert 4 and gets 1 from 0 rows"):
        make_job(OLD, new, plan, 2, 2, 10)


def test_artifacts_are_read(tmp_path: Path) -> None:
    write_placement(tmp_path, Placement(NEW, OLD, 4))
    write_transfers(tmp_path, PLAN)
    inputs = {"placement": tmp_path / "placement.safetensors", "transfers": tmp_path / "transfers.parquet"}
    job = read_job(inputs, 2, 2, 10)
    assert job.direct
    assert np.array_equal(job.old, OLD)
    assert np.array_equal(job.new, NEW)
