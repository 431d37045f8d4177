"""Files larger than what memory should hold: read in blocks, with the same result and little memory."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from safetensors.numpy import save_file

from stages.errors import BadInput
from tests.bench import bench_collect
from tests.stages.collect.helpers import Counts, columns, model, run_table

COUNT = np.random.default_rng(4).integers(0, 90, (23, 3, 4))
LABELS = [f"row {n}" for n in range(23)]
CURRENT = np.tile([0, 1, 2, 3, 3, -1], (3, 1))


def write_json(path: Path, count: Counts) -> None:
    path.write_text(
        json.dumps({"labels": LABELS, "logical_count": count.tolist(), "physical_to_logical_map": CURRENT.tolist()})
    )


@pytest.fixture
def nothing_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is too large to be read whole, and a block is two rows."""
    for module in ("arrays", "nested"):
        monkeypatch.setattr(f"stages.collect.{module}.IN_MEMORY", 0)
    monkeypatch.setattr("stages.collect.dump.BLOCK_BYTES", 200)
    monkeypatch.setattr("stages.collect.rows.BLOCK_BYTES", 200)
    monkeypatch.setattr("stages.collect.columns.CSV_BYTES", 128)
    monkeypatch.setattr("stages.collect.columns.PARQUET_ROWS", 5)
    monkeypatch.setattr("stages.collect.nested.STEPS_AT_ONCE", 2)


@pytest.mark.usefixtures("nothing_fits")
class TestBlocks:
    @pytest.mark.parametrize("name", ["npz", "npy", "safetensors", "json", "list.json", "adrs.json", "csv", "parquet"])
    def test_they_do_not_show(self, tmp_path: Path, name: str) -> None:
        path = tmp_path / f"loads.{name}"
        if name == "npz":
            np.savez_compressed(path, logical_count=COUNT, label=np.array(LABELS), physical_to_logical_map=CURRENT)
        elif name == "npy":
            np.save(path, COUNT)
        elif name == "safetensors":
            meta = {"moesaic": json.dumps({"labels": LABELS})}
            save_file({"logical_count": COUNT, "physical_to_logical_map": CURRENT}, path, metadata=meta)
        elif name == "json":
            write_json(path, COUNT)
        elif name == "list.json":
            path.write_text(json.dumps(COUNT.tolist()))
        elif name == "adrs.json":
            path.write_text(json.dumps({"load_history": [{"logical_expert_load": step} for step in COUNT.tolist()]}))
        elif name == "csv":
            rows = zip(*(column.tolist() for column in columns(COUNT).values()), strict=True)
            path.write_text("window,layer,expert,count\n" + "".join(f"{','.join(map(str, row))}\n" for row in rows))
        else:
            parquet.write_table(pa.table(columns(COUNT)), path)
        _, load = run_table(path, model(), window=4)
        np.testing.assert_array_equal(load.logical_count, np.add.reduceat(COUNT, range(0, 23, 4), axis=0))
        if name in ("npz", "safetensors", "json"):
            assert load.labels == tuple(f"row {a} … row {min(a + 3, 22)}" for a in range(0, 23, 4))
            np.testing.assert_array_equal(load.current, CURRENT)

    def test_a_column_major_array_is_read_whole(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "x.npz", logical_count=np.asfortranarray(COUNT))
        np.testing.assert_array_equal(run_table(tmp_path / "x.npz", model())[1].logical_count, COUNT)

    def test_windows_that_are_mixed_are_put_in_order(self, tmp_path: Path) -> None:
        rows = np.stack(list(columns(COUNT).values()), axis=1)
        mixed = np.random.default_rng(0).permutation(rows)
        text = "window,layer,expert,count\n" + "".join(f"{','.join(map(str, row))}\n" for row in mixed.tolist())
        (tmp_path / "x.csv").write_text(text)
        np.testing.assert_array_equal(run_table(tmp_path / "x.csv", model())[1].logical_count, COUNT)

    def test_rows_are_named_by_their_number_in_the_file(self, tmp_path: Path) -> None:
        rows = np.stack(list(columns(COUNT).values()), axis=1)
        lines = [",".join(map(str, row)) + "\n" for row in rows.tolist()]
        for line, words in (
            ("17,1,2,-4\n", "layer 1 has values of count that are negative in row 200"),
            ("17,1,2,x\n", "layer 1 has values of count that are not numbers in row 200"),
            ("17,9,2,4\n", "layer 9 is out of range in row 200"),
            (",1,2,4\n", "names no window in row 200"),
            (lines[3], "layer 0, expert 3, window 0 is given more than once, in rows 3, 200"),
            ("day,1,2,3\n", "numbers its windows and names one 'day'"),
        ):
            text = "".join([*lines[:200], line, *lines[201:]])
            (tmp_path / "x.csv").write_text("window,layer,expert,count\n" + text)
            with pytest.raises(BadInput, match=words):
                run_table(tmp_path / "x.csv", model())

    def test_what_is_wrong_is_named_all_the_same(self, tmp_path: Path) -> None:
        bad = COUNT.copy()
        bad[[3, 20], 1, 2] = -1
        np.savez(tmp_path / "x.npz", logical_count=bad)
        with pytest.raises(BadInput, match="layer 1 has counts that are negative in rows 3, 20 "):
            run_table(tmp_path / "x.npz", model())
        content = (tmp_path / "x.npz").read_bytes()
        (tmp_path / "x.npz").write_bytes(content[:-30])
        with pytest.raises(BadInput, match=r"cannot be read as a \.npz file"):
            run_table(tmp_path / "x.npz", model())
        np.save(tmp_path / "x.npy", COUNT)
        (tmp_path / "x.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:-30])
        with pytest.raises(BadInput, match=r"cannot be read as a \.npy file"):
            run_table(tmp_path / "x.npy", model())
        for text, words in (
            (
                '{"load_history": [{"logical_expert_load": [[1]]}',
                r"cannot be read as a \.json file: IncompleteJSONError",
            ),
            ('{"load_history": []}', "is empty: it has no steps"),
            ('{"loads": []}', "has no logical_count, only loads"),
            ('{"logical_count": [[1, 2], [3, 4]]}', r"must be \[windows, layers, experts\]"),
        ):
            (tmp_path / "x.json").write_text(text)
            with pytest.raises(BadInput, match=words):
                run_table(tmp_path / "x.json", model())


@pytest.mark.parametrize("name", ["stat.pt", "passes"])
def test_memory_stays_far_below_the_file(tmp_path: Path, name: str) -> None:
    """`make bench-collect` measures every format at a GiB; this is a quarter of one."""
    total = bench_collect.write(name, tmp_path / name, 256 << 20)
    mib, _, windows, found = bench_collect.measure(tmp_path / name)
    assert found == total
    assert windows >= 2
    assert mib < 0.5 * bench_collect.size_of(tmp_path / name) / (1 << 20)
