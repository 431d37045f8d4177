"""Every format reads back what was written, and nothing is unpickled."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from pyarrow import parquet
from safetensors.numpy import save_file

from stages.collect.table import read_table
from stages.collect.validate import check
from stages.errors import BadInput
from stages.load import LoadStats, write_load
from tests.stages.collect.helpers import WRITERS, columns, loads, model, run_table

CUSTOM = model(None, None)


@pytest.mark.parametrize("name", WRITERS)
@settings(deadline=None, max_examples=12, derandomize=True)
@given(count=arrays(np.int64, array_shapes(min_dims=3, max_dims=3, max_side=4), elements=st.integers(1, 2**40)))
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, name: str, count: np.ndarray) -> None:
    ending, write = WRITERS[name]
    path = tmp_path_factory.mktemp("table") / f"loads{ending}"
    write(path, count)
    load = check(read_table(path, CUSTOM), CUSTOM).load
    assert load.logical_count.dtype == np.int64
    np.testing.assert_array_equal(load.logical_count, count)
    assert load.labels == ()
    assert load.current is None


@pytest.mark.parametrize("name", ["npz", "npy", "safetensors", "json", "json_list"])
def test_layers_by_experts_is_one_window(tmp_path: Path, name: str) -> None:
    ending, write = WRITERS[name]
    write(tmp_path / f"loads{ending}", loads()[0])
    _, load = run_table(tmp_path / f"loads{ending}", model())
    np.testing.assert_array_equal(load.logical_count, loads()[:1])


def test_ending_in_capitals(tmp_path: Path) -> None:
    path = tmp_path / "loads.NPY"
    with path.open("wb") as stream:
        np.save(stream, loads())
    np.testing.assert_array_equal(run_table(path, model())[1].logical_count, loads())


def test_tables_may_be_shuffled_sparse_and_without_windows(tmp_path: Path) -> None:
    count = loads(1)
    count[0, 1, 2] = 0
    rows = np.stack([column for name, column in columns(count).items() if name != "window"], axis=1)
    rows = np.random.default_rng(0).permutation(rows[rows[:, 2] > 0])
    text = "layer, expert, count, remark\n" + "".join(f"{a},{b},{c},x\n" for a, b, c in rows)
    (tmp_path / "loads.csv").write_text(text)
    np.testing.assert_array_equal(run_table(tmp_path / "loads.csv", model())[1].logical_count, count)


def test_numbered_windows_are_put_in_order_and_have_no_labels(tmp_path: Path) -> None:
    count = loads(3)
    table = columns(count)
    table["window"] = np.array([70, 8, 9])[table["window"]]
    parquet.write_table(pa.table(table), tmp_path / "loads.parquet")
    _, load = run_table(tmp_path / "loads.parquet", model())
    np.testing.assert_array_equal(load.logical_count, count[[1, 2, 0]])
    assert load.labels == ()


def test_named_windows_keep_their_order_and_are_labels(tmp_path: Path) -> None:
    table = dict(columns(loads(3)))
    named = {**table, "window": np.array(["night", "day", "eve"])[table["window"]]}
    parquet.write_table(pa.table(named), tmp_path / "loads.parquet")
    _, load = run_table(tmp_path / "loads.parquet", model())
    assert load.labels == ("night", "day", "eve")
    np.testing.assert_array_equal(load.logical_count, loads(3))
    assert run_table(tmp_path / "loads.parquet", model(), label="day")[1].labels == ("day",)


def test_artifact_of_an_earlier_run_reads_as_a_table(tmp_path: Path) -> None:
    current = np.tile(np.arange(6) % 4, (3, 1))
    write_load(tmp_path, LoadStats(loads(2), ("a", "b"), current))
    _, load = run_table(tmp_path / "load.safetensors", model())
    assert load.labels == ("a", "b")
    np.testing.assert_array_equal(load.logical_count, loads(2))
    np.testing.assert_array_equal(load.current, current)


def test_current_placement_and_labels_come_along(tmp_path: Path) -> None:
    current = np.tile(np.array([3, 2, 1, 0, 0, -1]), (3, 1))
    labels = np.array(list("abcde"))
    np.savez(tmp_path / "z.npz", logical_count=loads(), physical_to_logical_map=current.astype(np.int32), label=labels)
    save_file({"logical_count": loads(), "physical_to_logical_map": current}, tmp_path / "s.safetensors")
    content = {"logical_count": loads().tolist(), "physical_to_logical_map": current.tolist(), "labels": list("abcde")}
    (tmp_path / "j.json").write_text(json.dumps(content))
    for name, names in (("z.npz", "abcde"), ("s.safetensors", ""), ("j.json", "abcde")):
        result, load = run_table(tmp_path / name, model())
        np.testing.assert_array_equal(load.current, current)
        assert load.labels == tuple(names)
        assert "6 slots a layer" in result.note


class Bomb:
    """Leaves a trace when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("name", ["raw.npy", "raw.npz", "object.npy", "object.npz"])
def test_pickles_are_refused_and_never_run(tmp_path: Path, name: str) -> None:
    path, trace = tmp_path / name, tmp_path / "trace"
    bomb = Bomb(trace)
    if name.startswith("raw"):
        path.write_bytes(pickle.dumps(bomb))
    elif name == "object.npy":
        np.save(path, np.array([bomb], dtype=object), allow_pickle=True)
    else:
        np.savez(path, logical_count=np.array([bomb], dtype=object))
    with pytest.raises(BadInput, match="pickled Python objects, which are never loaded") as error:
        read_table(path, CUSTOM)
    assert str(path) in str(error.value)
    assert not trace.exists()
