"""The checksums artifact keeps every checksum, in every slot that is filled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from stages import paths
from stages.checksum_table import PREVIEW_ROWS, ChecksumTable, read_checksums, write_checksums
from stages.expert_map import EMPTY


def table_of(layers: int, slots: int, ranks: int, tensors: tuple[str, ...], empty: float) -> ChecksumTable:
    rng = np.random.default_rng(0)
    shape = (layers, slots, len(tensors))
    before, after = (rng.integers(0, 2**64, shape, dtype=np.uint64) for _ in range(2))
    old, new = (np.where(rng.random(shape[:2]) < empty, EMPTY, rng.integers(0, 9, shape[:2])) for _ in range(2))
    return ChecksumTable(before, after, old, new, tensors, ranks)


@pytest.mark.parametrize(
    ("layers", "slots", "ranks", "tensors", "empty"),
    [
        (1, 1, 1, ("w",), 0.0),
        (3, 4, 2, ("w2", "a, with a comma", "w13"), 0.0),  # in the model's order, not the alphabet's
        (3, 8, 4, ("w13", "scale"), 0.4),
        (2, 2, 2, ("w",), 1.0),
    ],
)
def test_round_trip(
    tmp_path: Path, layers: int, slots: int, ranks: int, tensors: tuple[str, ...], empty: float
) -> None:
    table = table_of(layers, slots, ranks, tensors, empty)
    assert write_checksums(tmp_path, table) == (paths.CHECKSUMS, paths.CHECKSUMS_PREVIEW)
    found = read_checksums(tmp_path / paths.CHECKSUMS)
    assert (found.tensors, found.ranks) == (tensors, ranks)
    for name, expert_map in (("before", table.old), ("after", table.new)):
        filled = expert_map != EMPTY
        kept, given = getattr(found, name), getattr(table, name)
        assert kept.dtype == np.uint64
        assert kept.shape == given.shape
        np.testing.assert_array_equal(kept[filled], given[filled])
    for name in ("old", "new"):
        np.testing.assert_array_equal(getattr(found, name), getattr(table, name))
        assert getattr(found, name).dtype == np.int64


def test_one_row_a_slot_and_tensor_and_null_where_a_slot_is_empty(tmp_path: Path) -> None:
    table = table_of(2, 4, 2, ("w13", "scale"), 0.4)
    write_checksums(tmp_path, table)
    rows = pyarrow.parquet.read_table(tmp_path / paths.CHECKSUMS).to_pylist()
    assert len(rows) == 2 * 4 * 2
    for row in rows:
        at = row["layer"], row["slot"]
        k = table.tensors.index(row["tensor"])
        assert row["rank"] == row["slot"] // 2
        assert (row["expert_before"], row["expert_after"]) == (table.old[at], table.new[at])
        assert row["before"] == (None if table.old[at] == EMPTY else table.before[at][k])
        assert row["after"] == (None if table.new[at] == EMPTY else table.after[at][k])


def test_many_rows_come_back_and_their_preview_is_short(tmp_path: Path) -> None:
    table = table_of(61, 384, 32, ("a", "b", "c"), 0.1)
    write_checksums(tmp_path, table)
    found = read_checksums(tmp_path / paths.CHECKSUMS)
    filled = table.new != EMPTY
    np.testing.assert_array_equal(found.after[filled], table.after[filled])
    lines = (tmp_path / paths.CHECKSUMS_PREVIEW).read_text(encoding="utf-8").splitlines()
    assert len(lines) == 1 + PREVIEW_ROWS
