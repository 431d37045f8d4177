"""The transfer plan as a table: what it selects, and that the artifact keeps it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from stages import paths
from stages.transfers import COLUMNS, PREVIEW_ROWS, Kind, TransferPlan, read_transfers, write_transfers


def plan_of(rows: int, seed: int = 0) -> TransferPlan:
    rng = np.random.default_rng(seed)
    columns = {name: rng.integers(-1, 100, rows) for name in COLUMNS}
    columns["kind"] = rng.integers(0, len(Kind), rows)
    columns["bytes"] = rng.integers(0, 2**40, rows)
    return TransferPlan(**columns)


def test_columns_are_the_public_ones() -> None:
    names = "layer, logical_expert, kind, src_rank, src_slot, dst_rank, dst_slot, round, bytes"
    assert ", ".join(COLUMNS) == names
    assert [kind.name for kind in Kind] == ["same_gpu", "free_rider", "same_node", "cross_node", "relay"]


@pytest.mark.parametrize("rows", [0, 1, 2, 300])
def test_round_trip(tmp_path: Path, rows: int) -> None:
    plan = plan_of(rows)
    assert write_transfers(tmp_path, plan) == (paths.TRANSFERS, paths.TRANSFERS_PREVIEW)
    found = read_transfers(tmp_path / paths.TRANSFERS)
    assert len(found) == rows
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(found, name), getattr(plan, name))
        assert getattr(found, name).dtype == np.int64


def test_kinds_are_readable_in_the_files(tmp_path: Path) -> None:
    plan = plan_of(20)
    write_transfers(tmp_path, plan)
    names = [Kind(kind).name for kind in plan.kind]
    assert pyarrow.parquet.read_table(tmp_path / paths.TRANSFERS)["kind"].to_pylist() == names
    lines = (tmp_path / paths.TRANSFERS_PREVIEW).read_text(encoding="utf-8").splitlines()
    assert lines[0].replace('"', "").split(",") == list(COLUMNS)
    assert [line.split(",")[2].strip('"') for line in lines[1:]] == names


def test_the_preview_is_short(tmp_path: Path) -> None:
    write_transfers(tmp_path, plan_of(PREVIEW_ROWS + 10))
    lines = (tmp_path / paths.TRANSFERS_PREVIEW).read_text(encoding="utf-8").splitlines()
    assert len(lines) == 1 + PREVIEW_ROWS
    assert len(read_transfers(tmp_path / paths.TRANSFERS)) == PREVIEW_ROWS + 10


def test_the_same_plan_has_the_same_digest(tmp_path: Path) -> None:
    write_transfers(tmp_path / "a", plan_of(50))
    write_transfers(tmp_path / "b", plan_of(50))
    assert paths.sha256(tmp_path / "a") == paths.sha256(tmp_path / "b")


def test_select_takes_masks_and_indices() -> None:
    plan = plan_of(10)
    mask = plan.layer > 40
    assert plan.select(mask).dst_slot.tolist() == plan.dst_slot[mask].tolist()
    backwards = plan.select(np.arange(10)[::-1])
    assert backwards.bytes.tolist() == plan.bytes[::-1].tolist()
    assert len(plan.select(np.zeros(0, dtype=np.int64))) == 0


def test_network_hops_leave_a_gpu() -> None:
    plan = plan_of(50)
    local = {Kind.same_gpu, Kind.free_rider}
    assert plan.network.tolist() == [Kind(kind) not in local for kind in plan.kind]
