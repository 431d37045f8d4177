"""Bad input gets one message that names the file, the layer and the rows, and ends with exit code 2."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from safetensors.numpy import save_file

from stages.errors import BadInput
from tests.stages.collect.helpers import Counts, columns, loads, model, run, run_table


def edited(edit: Callable[[np.ndarray], object], dtype: type = np.int64) -> np.ndarray:
    count = loads().astype(dtype)
    edit(count)
    return count


def put(value: float, *where: object, dtype: type = np.int64) -> np.ndarray:
    return edited(lambda count: count.__setitem__(where, value), dtype)


MAP = np.tile(np.arange(4), (3, 1))
ARRAYS: dict[str, tuple[dict[str, np.ndarray], list[str]]] = {
    "one dimension": ({"logical_count": np.ones(4, int)}, ["shape [4]", "[windows, layers, experts]"]),
    "four dimensions": ({"logical_count": np.ones((1, 1, 3, 4), int)}, ["shape [1, 1, 3, 4]"]),
    "no windows": ({"logical_count": np.ones((0, 3, 4), int)}, ["is empty", "shape [0, 3, 4]"]),
    "no experts": ({"logical_count": np.ones((3, 0), int)}, ["is empty"]),
    "no logical_count": ({"count": loads()}, ["has no logical_count, only count"]),
    "text": ({"logical_count": loads().astype(str)}, ["layer 0", "not numbers"]),
    "booleans": ({"logical_count": loads() > 3}, ["layer 0", "not numbers"]),
    "complex": ({"logical_count": loads().astype(complex)}, ["not numbers"]),
    "negative": (
        {"logical_count": put(-7, [1, 3], 2, 1)},
        ["layer 2 has counts that are negative in rows 1, 3 (windows, counted from 0); the first is -7 for expert 1."],
    ),
    "negative in two layers": (
        {"logical_count": put(-7, 4, slice(1, None))},
        ["layer 1 has", "in row 4 (", "in layer 2 too"],
    ),
    "many rows": (
        {"logical_count": np.full((600, 3, 4), -1)},
        ["rows 0, 1, 2, 3, 4 and 595 more", "in layers 1, 2 too"],
    ),
    "NaN": ({"logical_count": put(np.nan, 2, 1, 0, dtype=float)}, ["layer 1", "not numbers in row 2", "nan for"]),
    "infinite": ({"logical_count": put(np.inf, 2, 1, 0, dtype=float)}, ["layer 1", "not finite in row 2"]),
    "half": ({"logical_count": put(1.5, 0, 0, 3, dtype=float)}, ["layer 0", "not whole numbers in row 0", "1.5"]),
    "unsigned wrap": ({"logical_count": put(2**64 - 1, 0, 2, 3, dtype=np.uint64)}, ["layer 2", "too large"]),
    "sum too large": ({"logical_count": put(2**52, slice(None), 2, 3)}, ["layer 2", "2^53 can be counted"]),
    "silent layer": (
        {"logical_count": put(0, slice(None), 1)},
        ["layer 1 has no tokens at all, in none of rows 0, 1, 2, 3, 4 (windows"],
    ),
    "two silent layers": ({"logical_count": put(0, slice(None), [0, 2])}, ["layers 0, 2 have no tokens"]),
    "nothing counted": ({"logical_count": np.zeros((5, 3, 4), int)}, ["has no tokens: layers 0, 1, 2 are zero"]),
    "fewer layers": ({"logical_count": loads(layers=1)}, ["has 1 layer: layers 1, 2 of the model", "model.layers=3"]),
    "more layers": ({"logical_count": loads(layers=4)}, ["has 4 layers; the model has 3 (model.layers=3)."]),
    "fewer experts": ({"logical_count": loads(experts=3)}, ["has 3 experts", "model.experts=4"]),
    "more experts": ({"logical_count": loads(experts=5)}, ["has 5 experts", "model.experts=4"]),
    "labels": ({"logical_count": loads(), "label": np.array(["a"])}, ["1 label for 5 windows"]),
    "map of floats": ({"logical_count": loads(), "physical_to_logical_map": MAP / 2}, ["float64 of shape [3, 4]"]),
    "map of one layer": ({"logical_count": loads(), "physical_to_logical_map": MAP[:1]}, ["has 1 layer, but"]),
    "map beyond": ({"logical_count": loads(), "physical_to_logical_map": MAP + 1}, ["slot 3 holds expert 4"]),
    "map lacks": ({"logical_count": loads(), "physical_to_logical_map": MAP * 0}, ["layer 0 holds expert 1 in no slot"]),
}  # fmt: skip


def message(path: Path, **options: object) -> str:
    with pytest.raises(BadInput) as error:
        run_table(path, model(), **options)
    assert error.value.exit_code == 2
    text = str(error.value)
    assert str(path) in text
    assert "\n" not in text
    assert not (path.parent / "collect" / "load.safetensors").exists()
    return text


@pytest.mark.parametrize("case", ARRAYS)
def test_broken_arrays(tmp_path: Path, case: str) -> None:
    content, fragments = ARRAYS[case]
    np.savez(tmp_path / "broken.npz", **content)
    text = message(tmp_path / "broken.npz")
    assert [part for part in fragments if part not in text] == [], text


def test_dense_layers_are_offered_where_the_model_has_some(tmp_path: Path) -> None:
    np.save(tmp_path / "broken.npy", loads(layers=4))
    with pytest.raises(BadInput, match=r"the model has 3 \(model.layers=3\), or 5 with its dense ones"):
        run_table(tmp_path / "broken.npy", model(first_moe_layer=1, dense_layers=[2]))


def test_layers_of_a_dump_with_dense_rows_are_named_as_in_the_dump(tmp_path: Path) -> None:
    count = loads(layers=4)
    count[:, 2] = 0
    np.save(tmp_path / "broken.npy", count)
    with pytest.raises(BadInput, match="layer 2 has no tokens"):
        run_table(tmp_path / "broken.npy", model(first_moe_layer=1))


def table_text(count: Counts, extra: str = "") -> str:
    rows = np.stack(list(columns(count).values()), axis=1)
    return "window,layer,expert,count\n" + "".join(",".join(map(str, row)) + "\n" for row in rows.tolist()) + extra


CSV: dict[str, tuple[str, list[str]]] = {
    "no column": ("window,layer,expert\n0,0,0\n", ["has no column count", "window, layer, expert"]),
    "column twice": ("layer,layer,expert,count\n0,0,0,1\n", ["has the column layer more than once"]),
    "header alone": ("layer,expert,count\n", ["is empty: it has no rows"]),
    "no bytes": ("", ["is empty: it has no bytes"]),
    "ragged": ("layer,expert,count\n0,0,1,5\n", ["cannot be read as a .csv file", "Expected 3 columns, got 4"]),
    "word": (
        table_text(loads(1)).replace("0,2,1,10\n", "0,2,1,ten\n"),
        ["layer 2 has values of count that are not numbers in row 9 (rows counted from 0, below the header)", "'ten'"],
    ),
    "no count": (table_text(loads(1), "1,1,0,\n"), ["layer 1", "not numbers in row 12", "the first is empty"]),
    "dates": ("layer,expert,count\n0,0,2026-11-01\n", ["layer 0", "not numbers in row 0"]),
    "half": (table_text(loads(1), "1,1,0,2.5\n"), ["layer 1", "not whole numbers in row 12", "2.5"]),
    "negative": (table_text(loads(1), "1,1,0,-3\n1,2,0,-1\n"), ["layer 1", "negative in row 12 ", "-3"]),
    "negative expert": (table_text(loads(1), "1,1,-1,3\n"), ["layer 1 has values of expert that are negative"]),
    "negative layer": (table_text(loads(1), "1,-1,1,3\n"), ["has values of layer that are negative in row 12"]),
    "no layer": (table_text(loads(1), "1,,1,3\n"), ["values of layer that are not numbers in row 12"]),
    "no window": (table_text(loads(1), ",1,1,3\n"), ["names no window in row 12"]),
    "expert beyond": (
        table_text(loads(1), "1,1,4,3\n1,2,0,3\n1,1,9,3\n"),
        ["layer 1: expert 4 is out of range in rows 12, 14 (", "allowed are 0 to 3"],
    ),
    "layer beyond": (table_text(loads(1), "1,3,1,3\n"), ["layer 3 is out of range in row 12", "allowed are 0 to 2"]),
    "fewer experts": (table_text(loads(experts=3)), ["has 3 experts", "rows of count 0"]),
    "fewer layers": (table_text(loads(layers=2)), ["has 2 layers: layer 2 of the model"]),
    "repeats": (
        table_text(loads(2), "1,2,3,5\n0,1,1,5\n"),
        ["layer 2, expert 3, window 1 is given more than once, in rows 23, 24", "so is 1 other."],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CSV)
def test_broken_tables(tmp_path: Path, case: str) -> None:
    text, fragments = CSV[case]
    (tmp_path / "broken.csv").write_text(text)
    found = message(tmp_path / "broken.csv")
    assert [part for part in fragments if part not in found] == [], found


@pytest.mark.parametrize(
    ("column", "values", "fragment"),
    [
        ("count", pa.array([1, None], pa.int64()), "layer 1 has values of count that are not numbers in row 1"),
        ("count", pa.array([True, False]), "layer 0 has values of count that are not numbers in row 0"),
        ("expert", pa.array(["0", "x"]), "layer 1 has values of expert that are not numbers in row 1"),
        ("window", pa.array([float("nan"), 1.0]), "names no window in row 0"),
    ],
)
def test_broken_parquet(tmp_path: Path, column: str, values: pa.Array, fragment: str) -> None:
    table = {"window": [0, 0], "layer": [0, 1], "expert": [0, 0], "count": [1, 1], column: values}
    parquet.write_table(pa.table(table), tmp_path / "broken.parquet")
    assert fragment in message(tmp_path / "broken.parquet")


def test_gaps_in_a_table_of_an_unknown_model(tmp_path: Path) -> None:
    path = tmp_path / "broken.csv"
    for row, fragment in (("900000000,0,1", "layer 2 has no rows, though layer 900000000 has"),
                          ("1,900000000,1", "expert 2 has no rows, though expert 900000000 has")):  # fmt: skip
        path.write_text(f"layer,expert,count\n0,0,1\n0,1,1\n1,0,1\n1,1,1\n{row}\n")
        with pytest.raises(BadInput, match=fragment) as error:
            run_table(path, model(None, None))
        assert "row 4" in str(error.value)


def test_a_layer_left_out_of_a_table(tmp_path: Path) -> None:
    kept = "".join(line for line in table_text(loads(1)).splitlines(True) if not line.startswith("0,1,"))
    (tmp_path / "broken.csv").write_text(kept)
    assert "layer 1 has no tokens at all, in none of row 0" in message(tmp_path / "broken.csv")


JSON = {
    "not json": ("{", "cannot be read as a .json file: JSONDecodeError"),
    "deep": ("[" * 100_000, "cannot be read as a .json file: RecursionError"),
    "number": ("5", "neither an object with logical_count nor a nested list"),
    "other key": ('{"loads": []}', "has no logical_count, only loads"),
    "empty object": ("{}", "has no logical_count, only nothing at all"),
    "empty list": ("[]", "shape [0]"),
    "no load in a step": ('{"load_history": [{}]}', "cannot be read as a .json file: KeyError"),
    "null": (json.dumps({"logical_count": [[[None] * 4] * 3]}), "layer 0 has counts that are not numbers in row 0"),
    "words": (json.dumps([[[1, 2, 3, "4"]] * 3]), "not numbers in row 0 (windows, counted from 0); the first is 4 for"),
    "NaN": (json.dumps([[[1, 2, 3, float("nan")]] * 3]), "not numbers in row 0"),
    "huge": (json.dumps([[[1, 2, 3, 10**400]] * 3]), "not finite in row 0"),
    "ragged experts": (
        json.dumps([[[1] * 4] * 3, [[1] * 4, [1] * 3, [1] * 4]]),
        "not rectangular: row 0, layer 0 has 4 entries, but row 1, layer 1 has 3 entries",
    ),
    "ragged layers": (json.dumps([[[1] * 4] * 3, [[1] * 4] * 2]), "row 0 has 3 entries, but row 1 has 2 entries"),
    "ragged depth": (json.dumps([[1, 2, 3, 4], 5]), "layer 0 has 4 entries, but layer 1 has no list"),
}


@pytest.mark.parametrize("case", JSON)
def test_broken_json(tmp_path: Path, case: str) -> None:
    text, fragment = JSON[case]
    (tmp_path / "broken.json").write_text(text)
    assert fragment in message(tmp_path / "broken.json")


@pytest.mark.parametrize("ending", [".npz", ".npy", ".safetensors", ".json", ".parquet"])
@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00nonsense", b"PK\x03\x04", b"\x93NUMPY\x01\x00"])
def test_broken_bytes(tmp_path: Path, ending: str, content: bytes) -> None:
    path = tmp_path / f"broken{ending}"
    path.write_bytes(content)
    text = message(path)
    assert "is empty" in text if not content else "cannot be read as" in text or "pickled" in text


def test_cut_off_files(tmp_path: Path) -> None:
    np.savez(tmp_path / "whole.npz", logical_count=loads())
    np.save(tmp_path / "whole.npy", loads())
    save_file({"logical_count": loads()}, tmp_path / "whole.safetensors")
    for path in list(tmp_path.glob("whole.*")):
        cut = tmp_path / f"cut{path.suffix}"
        cut.write_bytes(path.read_bytes()[:-40])
        assert "cannot be read as" in message(cut)


def test_arrays_in_files_of_the_other_ending(tmp_path: Path) -> None:
    with (tmp_path / "one.npz").open("wb") as stream:
        np.save(stream, loads())
    with (tmp_path / "many.npy").open("wb") as stream:
        np.savez(stream, logical_count=loads())
    assert "ending .npy" in message(tmp_path / "one.npz")
    assert "ending .npz" in message(tmp_path / "many.npy")


def test_missing_files_and_folders(tmp_path: Path) -> None:
    assert "does not exist" in message(tmp_path / "missing.npz")
    (tmp_path / "folder.npz").mkdir()
    assert "is not a file" in message(tmp_path / "folder.npz")


def test_label_of_windows_without_names(tmp_path: Path) -> None:
    np.save(tmp_path / "loads.npy", loads())
    assert "collect.label=day chooses nothing" in message(tmp_path / "loads.npy", label="day")


def test_a_layer_silent_in_the_chosen_windows_alone(tmp_path: Path) -> None:
    count = loads(3)
    count[1:, 2] = 0
    np.savez(tmp_path / "loads.npz", logical_count=count, label=np.array(["day", "night", "night"]))
    assert "layer 2 has no tokens at all, in none of rows 1, 2" in message(tmp_path / "loads.npz", label="night")
    run_table(tmp_path / "loads.npz", model(), label="day")


@pytest.mark.parametrize(
    ("sample", "spec", "fragments"),
    [
        ("gpt_oss_20b", model(48, 32), ["sample gpt_oss_20b has 24 layers", "model.layers=48", "model=gpt_oss_20b"]),
        ("gpt_oss_20b", model(24, 64), ["has 32 experts", "model.experts=64", "collect=synthetic"]),
        ("olmoe", model(16, 64), ["has 3 layers", "layers 0, 7 and 15", "model=custom, or model.layers=3"]),
        ("mixtral", model(32, 8), ["has 3 layers", "layers 0, 7 and 15", "model=custom, or model.layers=3"]),
    ],
)
def test_samples_of_another_model(tmp_path: Path, sample: str, spec: object, fragments: list[str]) -> None:
    with pytest.raises(BadInput) as error:
        run(tmp_path, spec, sample=sample)  # type: ignore[arg-type]
    assert [part for part in fragments if part not in str(error.value)] == [], error.value
