"""Every engine's file: right by its schema, the same placement when read back, and refused where it cannot hold it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.engine_formats import FORMATS, LayerNumbers, export_placement, read_stored
from stages.engine_formats.formats import same_placement
from stages.engine_formats.stored import Outgoing
from stages.errors import BadInput
from tests.stages.engine_formats import schemas

ENDINGS = [(engine, ending) for engine, kind in FORMATS.items() for ending in kind.endings]
HOLDS_EMPTY = ("vllm", "omni")
DEEPSEEK = LayerNumbers(3)
GAPS = LayerNumbers(1, (3, 6))


@st.composite
def placements(draw: st.DrawFn) -> Outgoing:
    """Complete maps of any size, some with empty slots, some with an expert twice on a rank."""
    layers, experts = draw(st.integers(1, 4)), draw(st.integers(1, 9))
    ranks = draw(st.integers(1, 4))
    slots = -(-(experts + draw(st.integers(0, 6))) // ranks) * ranks
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    low = -1 if draw(st.booleans()) else 0
    rows = [
        rng.permutation(np.concatenate([np.arange(experts), rng.integers(low, experts, slots - experts)]))
        for _ in range(layers)
    ]
    numbers = draw(st.sampled_from([LayerNumbers(), DEEPSEEK, GAPS, LayerNumbers(0, (layers,))]))
    return Outgoing(np.stack(rows).astype(np.int64), experts, ranks, numbers)


def twice_on_a_rank(outgoing: Outgoing) -> bool:
    per_rank = outgoing.map.reshape(len(outgoing.map), outgoing.ranks, -1)
    return any(len(set(held)) < len(held) for rank in per_rank for held in ([e for e in r if e >= 0] for r in rank))


@pytest.mark.parametrize(("engine", "ending"), ENDINGS)
@settings(deadline=None, max_examples=60, derandomize=True)
@given(outgoing=placements())
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, engine: str, ending: str, outgoing: Outgoing) -> None:
    path = tmp_path_factory.mktemp("placement") / f"größe 1{ending}"
    if engine == "omni" and twice_on_a_rank(outgoing):
        with pytest.raises(BadInput, match="cannot hold an expert twice on one device"):
            export_placement(engine, path, outgoing)
        assert not path.exists()
        return
    if engine not in HOLDS_EMPTY and (outgoing.map < 0).any():
        with pytest.raises(BadInput, match="cannot hold empty slots"):
            export_placement(engine, path, outgoing)
        assert not path.exists()
        return
    export_placement(engine, path, outgoing)
    stored = read_stored(path, "place.path")
    rows = stored.moe_rows(len(outgoing.map), outgoing.numbers, str(path))
    assert rows.dtype == np.int64
    assert same_placement(rows, outgoing, ordered=engine != "omni")
    if engine != "omni":
        np.testing.assert_array_equal(rows, outgoing.map)
    assert stored.ranks in (None, outgoing.ranks)
    assert stored.experts in (None, outgoing.experts)
    again = path.with_stem("again")
    export_placement(engine, again, Outgoing(rows, outgoing.experts, outgoing.ranks, outgoing.numbers))
    np.testing.assert_array_equal(read_stored(again, "x").rows, stored.rows)
    check_schema(engine, path)


def check_schema(engine: str, path: Path) -> None:
    if engine == "omni":
        held = np.load(path, allow_pickle=False)
        assert held.ndim == 3
        assert set(np.unique(held)) <= {0, 1}
        return
    if path.suffix == ".pt":
        content = torch.load(path, weights_only=True)
        value: Any = {key: tensor.tolist() for key, tensor in content.items()}
    elif path.suffix in (".yaml", ".yml"):
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert all(type(layer) is int for layer in content["initial_global_assignments"])
        value = json.loads(json.dumps(content))
    else:
        text = path.read_text(encoding="utf-8")
        assert engine != "vllm" or text.count("\n") == 1
        value = json.loads(text)
    jsonschema.validate(value, getattr(schemas, engine.upper()))


def outgoing(layers: int = 4, numbers: LayerNumbers = DEEPSEEK, empty: bool = False) -> Outgoing:
    """4 experts in 6 slots on 2 ranks, a different map in each layer."""
    rows = np.array([np.roll([0, 1, 2, 3, 0, 1], layer) for layer in range(layers)])
    if empty:
        rows[1, 5] = -1
    return Outgoing(rows.astype(np.int64), 4, 2, numbers)


def test_sglang_has_a_row_for_each_hidden_layer(tmp_path: Path) -> None:
    export_placement("sglang", tmp_path / "map.json", outgoing())
    rows = json.loads((tmp_path / "map.json").read_text())["physical_to_logical_map"]
    assert rows[:3] == [[0, 1, 2, 3, 0, 1]] * 3
    assert rows[3:] == outgoing().map.tolist()
    export_placement("sglang", tmp_path / "gaps.pt", outgoing(numbers=GAPS))
    rows = torch.load(tmp_path / "gaps.pt", weights_only=True)["physical_to_logical_map"]
    assert rows.dtype == torch.int64
    assert rows.shape == (7, 6)
    np.testing.assert_array_equal(rows[[1, 2, 4, 5]], outgoing().map)
    np.testing.assert_array_equal(rows[[0, 3, 6]], [[0, 1, 2, 3, 0, 1]] * 3)


def test_trtllm_numbers_the_layers_as_the_model_does(tmp_path: Path) -> None:
    export_placement("trtllm", tmp_path / "map.yaml", outgoing())
    value = yaml.safe_load((tmp_path / "map.yaml").read_text())
    assert list(value) == ["num_slots", "layer_updates_per_iter", "initial_global_assignments"]
    assert list(value["initial_global_assignments"]) == [3, 4, 5, 6]
    assert value["initial_global_assignments"][4] == outgoing().map[1].tolist()
    assert len((tmp_path / "map.yaml").read_text().splitlines()) == 3 + 4  # a line a layer, for those who look
    export_placement("trtllm", tmp_path / "gaps.yml", outgoing(numbers=GAPS))
    assert list(yaml.safe_load((tmp_path / "gaps.yml").read_text())["initial_global_assignments"]) == [1, 2, 4, 5]


def test_vllm_and_ascend_count_moe_layers_from_0(tmp_path: Path) -> None:
    export_placement("vllm", tmp_path / "map.jsonl", outgoing(empty=True))
    record = json.loads((tmp_path / "map.jsonl").read_text())
    assert record["num_slots"] == 6
    assert record["num_redundant_experts"] == 2
    assert list(record["initial_global_assignments"]) == ["0", "1", "2", "3"]
    assert record["initial_global_assignments"]["1"] == outgoing(empty=True).map[1].tolist()
    export_placement("ascend", tmp_path / "expert_map.json", outgoing())
    value = json.loads((tmp_path / "expert_map.json").read_text())
    assert value["moe_layer_count"] == 4
    assert [layer["layer_id"] for layer in value["layer_list"]] == [0, 1, 2, 3]
    assert value["layer_list"][1]["device_list"][1] == {"device_id": 1, "device_expert": [2, 3, 0]}


def test_omni_holds_a_smaller_layer(tmp_path: Path) -> None:
    whole = Outgoing(np.array([[1, 0, 3, 2, 0, 1], [2, 0, -1, 1, 3, -1]]), 4, 2, DEEPSEEK)
    export_placement("omni", tmp_path / "map.npy", whole)
    held = np.load(tmp_path / "map.npy")
    assert held.shape == (2, 2, 4)
    np.testing.assert_array_equal(held[0], [[1, 1, 0, 1], [1, 0, 1, 0]])
    np.testing.assert_array_equal(
        read_stored(tmp_path / "map.npy", "x").rows, [[0, 1, 3, 0, 1, 2], [0, 2, -1, 1, 3, -1]]
    )


@pytest.mark.parametrize("engine", FORMATS)
def test_a_file_of_another_ending_is_refused(tmp_path: Path, engine: str) -> None:
    with pytest.raises(BadInput, match="must end in"):
        export_placement(engine, tmp_path / "map.txt", outgoing())
    assert not list(tmp_path.iterdir())


def test_a_file_that_stands_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    path.write_text("mine")
    with pytest.raises(BadInput):
        export_placement("sglang", path, outgoing(empty=True))
    assert path.read_text() == "mine"
    export_placement("sglang", path, outgoing())
    assert path.read_text() != "mine"
    assert [file.name for file in tmp_path.iterdir()] == ["map.json"]


def mapping(slots: int, layers: dict[str, list[int]]) -> str:
    record = {"record_type": "eplb_initial_mapping", "version": 1, "num_slots": slots, "num_redundant_experts": 0}
    return json.dumps({**record, "initial_global_assignments": layers}) + "\n"


TEXTS: dict[str, tuple[str, str]] = {
    "other key.json": ('{"logical_count": [[1]]}', "has no physical_to_logical_map"),
    "ragged.json": ('{"physical_to_logical_map": [[0, 1], [0]]}', "not rectangular"),
    "floats.json": ('{"physical_to_logical_map": [[0.5, 1]]}', "float64 of shape"),
    "flat.json": ('{"physical_to_logical_map": [0, 1]}', r"int64 of shape \[2\]"),
    "cut.json": ('{"physical_to_logical_map": [[0, 1', "cannot be read: JSONDecodeError"),
    "no devices.json": ('{"layer_list": [{}]}', "it lacks 'device_list'"),
    "uneven.json": (
        '{"moe_layer_count": 1, "layer_list": [{"device_list": [{"device_expert": [0, 1]}, {"device_expert": [2]}]}]}',
        "differ in their number of slots",
    ),
    "miscounted.json": (
        '{"moe_layer_count": 2, "layer_list": [{"device_list": [{"device_expert": [0, 1]}]}]}',
        "moe_layer_count=2, but 1 layers",
    ),
    "empty.jsonl": ("", "has no record of type eplb_initial_mapping"),
    "cut.jsonl": ('{"record_type": "eplb_initial_mapping", "ver', "line 1 is no JSON.*cut off"),
    "version.jsonl": ('{"record_type": "eplb_initial_mapping", "version": 2}\n', "version 2; only 1 is known"),
    "gap.jsonl": (mapping(1, {"0": [0], "2": [0]}), "not layer 1: they count from 0"),
    "slots.jsonl": (mapping(3, {"0": [0]}), "num_slots=3, but 1 slots"),
    "no layers.yaml": ("num_slots: 4\n", "has no initial_global_assignments"),
    "slots.yaml": ("num_slots: 4\ninitial_global_assignments: {3: [0, 1]}\n", "num_slots=4, but 2 slots"),
    "tag.yaml": ("!!python/object/apply:os.getcwd []\n", "cannot be read: ConstructorError"),
    "text.txt": ("0", "allowed are .json, .pt"),
}  # fmt: skip


@pytest.mark.parametrize("name", TEXTS)
def test_broken_files_are_named_in_one_sentence(tmp_path: Path, name: str) -> None:
    text, words = TEXTS[name]
    (tmp_path / name).write_text(text)
    with pytest.raises(BadInput, match=words) as error:
        read_stored(tmp_path / name, "place.path")
    assert name in str(error.value)
    assert "\n" not in str(error.value)


def test_layers_that_do_not_fit_the_model(tmp_path: Path) -> None:
    export_placement("trtllm", tmp_path / "map.yaml", outgoing())
    stored = read_stored(tmp_path / "map.yaml", "x")
    with pytest.raises(BadInput, match="map has no layer 7; the MoE layers of the model are 3 to 7"):
        stored.moe_rows(5, DEEPSEEK, "map")
    export_placement("sglang", tmp_path / "map.json", outgoing())
    with pytest.raises(BadInput, match="map has 7 layers; the model has 5, or 8 with its dense ones"):
        read_stored(tmp_path / "map.json", "x").moe_rows(5, DEEPSEEK, "map")


def test_the_shipped_placements_of_deepseek_v3_read_and_write(tmp_path: Path) -> None:
    data = Path(__file__).parents[3] / "stages" / "collect" / "data"
    for devices, slots, empty in ((32, 288, 8), (64, 320, 0)):
        stored = read_stored(data / f"deepseek_v3_placement_{devices}.npz", "place.current")
        assert (stored.ranks, stored.experts) == (devices, 256)
        assert stored.rows.shape == (58, slots)
        assert (stored.rows < 0).sum() == empty
        export_placement("omni", tmp_path / "back.npy", Outgoing(stored.rows, 256, devices, DEEPSEEK))
        with np.load(data / f"deepseek_v3_placement_{devices}.npz") as file:
            np.testing.assert_array_equal(np.load(tmp_path / "back.npy"), file["placement"])
