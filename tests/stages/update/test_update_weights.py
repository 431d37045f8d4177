"""Weights from files: what the slots of a rank hold, and an update and its audit from one checkpoint."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from stages.checksum_table import read_checksums
from stages.contract import silent
from stages.direct import direct_transfers
from stages.errors import BadInput, Corruption
from stages.execution import read_execution
from stages.placement import Placement, write_placement
from stages.topology import Topology
from stages.transfers import write_transfers
from stages.update.config import UpdateOptions, UpdateStageConfig
from stages.update.stage import update
from stages.update.weights import allocate, checksums, fill
from stages.verify.config import VerifyOptions, VerifyStageConfig
from stages.verify.stage import verify
from stages.weight_source import truth
from tests.stages import checkpoints
from tests.stages.checkpoints import EXPERTS, LAYERS, Checkpoint

RANKS = 2
OLD = np.array([[0, 1, 2, 3, 0, 1], [3, 2, 1, 0, 0, 0], [0, -1, 1, 2, 3, -1]])
NEW = np.array([[3, 2, 2, 0, 1, 1], [3, 2, 1, 0, 0, 0], [3, 2, -1, 1, 0, 3]])


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkpoint:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return checkpoints.deepseek_fp8(tmp_path / "files")


def config_of(made: Checkpoint, **options: object) -> UpdateStageConfig:
    given = UpdateOptions(weights="safetensors", weights_path=str(made.folder), link_mib=1, **options)
    return UpdateStageConfig(given, made.model, Topology(nodes=1, gpus_per_node=RANKS))


def inputs_of(made: Checkpoint, folder: Path) -> dict[str, Path]:
    write_placement(folder, Placement(NEW, OLD, EXPERTS))
    write_transfers(folder, direct_transfers(OLD, NEW, RANKS, RANKS, made.model.expert_bytes))
    return {"placement": folder / "placement.safetensors", "transfers": folder / "transfers.parquet"}


def test_slots_hold_their_experts_and_nothing_else(made: Checkpoint) -> None:
    config = config_of(made)
    weights = allocate(made.model.tensors, LAYERS, 6, torch.device("cpu"))
    for tensors in weights:
        for tensor in tensors:
            tensor.view(torch.uint8).fill_(7)
    fill(weights, config, OLD)
    for layer, slot in np.ndindex(OLD.shape):
        expert = int(OLD[layer, slot])
        for k, expected in enumerate(made.slot(layer, max(expert, 0))):
            found = weights[layer][k][slot].view(torch.uint8)
            assert torch.equal(found, expected.view(torch.uint8) if expert >= 0 else torch.zeros_like(found))
    assert config.weight_source is not None
    layer, slot = np.nonzero(OLD >= 0)
    assert np.array_equal(checksums(weights)[layer, slot], truth(config.weight_source, layer, OLD[layer, slot]))


def test_an_update_and_its_audit_from_one_checkpoint(made: Checkpoint, tmp_path: Path) -> None:
    inputs = inputs_of(made, tmp_path)
    folder = tmp_path / "update"
    folder.mkdir()
    result = update(config_of(made), inputs, folder, silent)
    assert read_execution(folder / "execution.json").weights == "safetensors"
    assert str(made.folder) in result.note
    table = read_checksums(folder / "checksums.parquet")
    source = config_of(made).weight_source
    assert source is not None
    for expert_map, found in ((OLD, table.before), (NEW, table.after)):
        layer, slot = np.nonzero(expert_map >= 0)
        assert np.array_equal(found[layer, slot], truth(source, layer, expert_map[layer, slot]))

    options = VerifyOptions(weights="safetensors", weights_path=str(made.folder))
    audit = VerifyStageConfig(options, made.model, 0)
    assert set(audit.external_files()) == {"update.weights_path"}
    inputs |= {"checksums": folder / "checksums.parquet", "execution": folder / "execution.json"}
    said: list[tuple[str, float]] = []
    result = verify(audit, inputs, tmp_path, lambda what, done, *counts: said.append((what, done)))
    assert result.metrics["mismatches"] == 0
    assert f"read anew from {made.folder} (names as in Qwen3-MoE)" in result.note
    assert "reading the weights anew" in {what for what, _ in said}
    assert said[-1][1] == 1.0

    name = "model.layers.3.mlp.experts.1.up_proj.weight_scale_inv"
    files = config_of(made).weight_source.files  # type: ignore[union-attr]
    path = made.folder / files.file_of(name)
    content = bytearray(path.read_bytes())
    place = content.index(files.tensor(name).numpy().tobytes())
    content[place + 3] ^= 1
    path.write_bytes(content)
    with pytest.raises(Corruption, match=r"2 of 132 checksums are wrong; the first: layer 2 slot 2 \(rank 0\) tensor "):
        verify(VerifyStageConfig(options, made.model, 0), inputs, tmp_path, silent)


def test_files_that_went_away_after_the_start_are_named(made: Checkpoint, tmp_path: Path) -> None:
    config = config_of(made)
    config.check_weights(LAYERS, EXPERTS)
    (made.folder / "model-00002-of-00004.safetensors").unlink()
    with pytest.raises(BadInput) as caught:
        update(config, inputs_of(made, tmp_path), tmp_path, silent)
    assert f"update.weights_path={made.folder}: the file model-00002-of-00004.safetensors is not there" in str(
        caught.value
    )
