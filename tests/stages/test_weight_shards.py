"""Shards: what is written is what was held, any reader of safetensors can read it, and what does not fit is named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from stages import weight_shards
from stages.checksum import checksum_rows
from stages.errors import BadInput, MoesaicError
from stages.model import ModelSpec, TensorSpec
from stages.synthetic import fill, truth
from stages.weight_files import INDEX
from stages.weight_shards import ShardIndex, ShardSource, read_index, shard_file, write_index, write_shard
from stages.weight_source import open_source

SPECS = [
    TensorSpec("w13_weight", [5, 3], "float8_e4m3fn"),
    TensorSpec("w13_scale", [3], "float32"),
    TensorSpec("w2_weight", [7, 2], "bfloat16"),
    TensorSpec("w2_scale", [9], "float8_e8m0fnu"),
    TensorSpec("odd", [11], "uint8"),
]
MAP = np.array([[0, 1, -1, 2, 1, 0], [2, 1, 0, 0, 0, -1]])
MODEL = ModelSpec(layers=2, experts=3, first_moe_layer=1, dense_layers=[2], tensors=SPECS)
LAYER_IDS = [1, 3]
SEED = 5


def slots_of(rank: int) -> list[list[torch.Tensor]]:
    """What the three slots of `rank` hold; what is in empty ones does not matter."""
    own = MAP[:, 3 * rank : 3 * rank + 3]
    layers: list[list[torch.Tensor]] = []
    for layer in range(2):
        layers.append([torch.empty((3, *s.shape), dtype=getattr(torch, s.dtype)) for s in SPECS])
        for k, tensor in enumerate(layers[-1]):
            fill(tensor, SEED, np.full(3, layer), np.where(own[layer] < 0, 9, own[layer]), k)
    return layers


def save(folder: Path) -> tuple[str, ...]:
    for rank in range(2):
        weights = slots_of(rank)
        sums = np.stack([np.stack([checksum_rows(t) for t in tensors], axis=1) for tensors in weights])
        own = np.ascontiguousarray(MAP[:, 3 * rank : 3 * rank + 3])
        write_shard(folder, rank, LAYER_IDS, SPECS, weights, own, sums)
    return write_index(folder, ShardIndex(LAYER_IDS, 3, 2, SPECS, MAP, "synthetic"))


def test_what_was_held_is_what_is_read(tmp_path: Path) -> None:
    files = save(tmp_path)
    assert sorted(files) == sorted(path.name for path in tmp_path.iterdir())
    source = open_source("shards", tmp_path, MODEL)
    assert source.title == f"{tmp_path} (shards of 2 ranks)"
    source.check(2, 3)
    assert isinstance(source, ShardSource)
    layer, expert = (index.ravel() for index in np.indices((2, 3)))
    expected = truth(SPECS, SEED, layer, expert)
    for n in range(6):
        found = [source.pieces(int(layer[n]), int(expert[n]), k) for k in range(len(SPECS))]
        assert [int(checksum_rows(piece[None])[0]) for (piece,) in found] == expected[n].tolist()
        assert source.recorded(int(layer[n]), int(expert[n])).tolist() == expected[n].tolist()


def test_any_reader_of_safetensors_reads_them(tmp_path: Path) -> None:
    save(tmp_path)
    weight_map = json.loads((tmp_path / INDEX).read_text())["weight_map"]
    assert weight_map["rank_00001.layers.3.w2_weight"] == "rank_00001.safetensors"
    for rank in range(2):
        tensors = load_file(tmp_path / shard_file(rank))
        assert set(tensors) == {name for name, file in weight_map.items() if file == shard_file(rank)}
        for layer, layer_id in enumerate(LAYER_IDS):
            for spec, held in zip(SPECS, slots_of(rank)[layer], strict=True):
                found = tensors[f"rank_{rank:05}.layers.{layer_id}.{spec.name}"]
                assert (list(found.shape), found.dtype) == ([3, *spec.shape], held.dtype)
                empty = torch.from_numpy(MAP[layer, 3 * rank : 3 * rank + 3] < 0)
                assert torch.equal(found[~empty].view(torch.uint8), held[~empty].view(torch.uint8))
                assert not found[empty].view(torch.uint8).any()


def test_tensors_are_aligned(tmp_path: Path) -> None:
    save(tmp_path)
    content = (tmp_path / shard_file(0)).read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    sizes = {"I64": 8, "F32": 4, "BF16": 2}
    for entry in (value for name, value in header.items() if name != "__metadata__"):
        assert (8 + length + entry["data_offsets"][0]) % sizes.get(entry["dtype"], 1) == 0


def test_a_disk_that_forgets_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slots = weight_shards._slots

    def forgetful(tensor: torch.Tensor, own: Any) -> Any:
        for number, content in enumerate(slots(tensor, own)):
            lose = tensor.dtype == torch.bfloat16 and number == 1
            yield bytes(len(content)) if lose else content

    monkeypatch.setattr(weight_shards, "_slots", forgetful)
    with pytest.raises(
        MoesaicError, match=r"rank_00000\.safetensors does not hold what was written: tensor w2_weight of "
    ):
        save(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_host_that_does_not_share_the_folder(tmp_path: Path) -> None:
    save(tmp_path)
    (tmp_path / shard_file(1)).unlink()
    with pytest.raises(MoesaicError, match=r"^Rank 1 left no .*rank_00001\.safetensors: .* that all hosts share\.$"):
        write_index(tmp_path, read_index(tmp_path))


@pytest.mark.parametrize(
    ("model", "layers", "experts", "message"),
    [
        (MODEL, 2, 4, "holds experts 3, and the model has 4."),
        (MODEL, 3, 3, "holds no layer 4: it has 1, 3."),
        (
            replace(MODEL, tensors=SPECS[:1]), 2, 3,
            "odd uint8 [11], and the model has w13_weight float8_e4m3fn [5, 3].",
        ),
    ],
)  # fmt: skip
def test_shards_of_another_model(tmp_path: Path, model: ModelSpec, layers: int, experts: int, message: str) -> None:
    save(tmp_path)
    with pytest.raises(BadInput) as caught:
        open_source("shards", tmp_path, model).check(layers, experts)
    assert str(caught.value).startswith(f"update.weights_path={tmp_path} holds ")
    assert str(caught.value).endswith(message)


def change_index(folder: Path, **values: object) -> None:
    index = json.loads((folder / INDEX).read_text())
    index["metadata"]["moesaic"] |= values
    (folder / INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"experts": None, "more": 1}, " cannot be read as an index of shards, as update.save=shards leaves it."),
        ({"physical_to_logical_map": [[0, 1, -1, 2, 1, 0]]}, "its map of [1, 6] does not fit its layers and ranks."),
        ({"physical_to_logical_map": [[0, 0, 0, 0, 0, 2]] * 2}, "holds expert 1 of layer 1 in no slot."),
        (
            {"physical_to_logical_map": [[0, 1, 2, 0]] * 2},
            (
                "rank_00000.safetensors holds rank_00000.layers.1.w13_weight as float8_e4m3fn [3, 5, 3], and "
                "float8_e4m3fn [2, 5, 3] is needed."
            ),
        ),
    ],
)
def test_an_index_that_lies(tmp_path: Path, values: dict[str, object], message: str) -> None:
    save(tmp_path)
    change_index(tmp_path, **values)
    with pytest.raises(BadInput) as caught:
        open_source("shards", tmp_path, MODEL).check(2, 3)
    assert str(caught.value).endswith(message)


def test_folders_without_shards(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"holds no shards: model\.safetensors\.index\.json is not there\.$"):
        open_source("shards", tmp_path, MODEL)
    (tmp_path / INDEX).write_text('{"weight_map": {}}')
    with pytest.raises(BadInput, match="cannot be read as an index of shards"):
        open_source("shards", tmp_path, MODEL)


def test_the_digest_follows_the_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("a", "b"):
        save(tmp_path / name)
    digests = [open_source("shards", tmp_path / name, MODEL).sha256() for name in ("a", "b")]
    assert digests[0] == digests[1]
    path = tmp_path / "b" / shard_file(1)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert open_source("shards", tmp_path / "b", MODEL).sha256() != digests[0]
