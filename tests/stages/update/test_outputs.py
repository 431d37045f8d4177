"""The functional proof over ranks: outputs belong to logical experts, and a slot that computes something else shows."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from stages.checksum import checksum_rows
from stages.direct import direct_transfers
from stages.functional import FunctionalProof, from_json
from stages.topology import Topology
from stages.update.arithmetic import arithmetic_for
from stages.update.config import UpdateOptions, UpdateStageConfig
from stages.update.job import Job, make_job
from stages.update.launch import launch
from stages.update.outputs import Outputs
from stages.update.routing import serving_slots
from stages.update.weights import Weights, allocate, fill
from tests.stages import checkpoints
from tests.stages.checkpoints import LAYERS, Checkpoint
from tests.stages.update.cases import Case, config_of, job_of
from tests.stages.update.rank_entries import prove

OLD = np.array([[0, 1, 2, 3, 0, 1, 2, -1], [3, 2, 1, 0, 0, 0, 0, 0], [0, -1, 1, 2, 2, 3, 1, -1]])
NEW = np.array([[3, 2, 2, 0, 1, 1, 3, 3], [3, 2, 1, 0, 0, 0, 0, 2], [3, 2, -1, 1, 3, 0, 1, 3]])


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkpoint:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return checkpoints.deepseek_fp8(tmp_path / "files")


def from_files(made: Checkpoint, ranks: int) -> tuple[UpdateStageConfig, Job]:
    options = UpdateOptions(weights="safetensors", weights_path=str(made.folder), link_mib=1, functional=True)
    config = UpdateStageConfig(options, made.model, Topology(nodes=1, gpus_per_node=ranks), seed=5)
    plan = direct_transfers(OLD, NEW, ranks, ranks, made.model.expert_bytes)
    return config, make_job(OLD, NEW, plan, ranks, ranks, made.model.expert_bytes)


def held(config: UpdateStageConfig, job: Job, expert_map: np.ndarray) -> list[Weights]:
    """What each rank holds under a map."""
    found = []
    for rank in range(job.ranks):
        weights = allocate(config.model.tensors, job.layers, job.slots_per_rank, torch.device("cpu"))
        fill(weights, config, expert_map[:, rank * job.slots_per_rank : (rank + 1) * job.slots_per_rank])
        found.append(weights)
    return found


def outputs_of(outputs: Outputs, job: Job, weights: list[Weights], expert_map: np.ndarray) -> list[np.ndarray]:
    """All ranks' together; each output is computed by exactly one of them."""
    parts = [np.concatenate(outputs.own(rank, weights[rank], expert_map)) for rank in range(job.ranks)]
    assert (np.count_nonzero(parts, axis=0) == 1).all()
    ends = np.cumsum([len(layer) for layer in outputs.own(0, weights[0], expert_map)])[:-1]
    return np.split(np.sum(parts, axis=0, dtype=np.uint64), ends)


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_outputs_are_those_of_the_logical_experts(made: Checkpoint, ranks: int) -> None:
    config, job = from_files(made, ranks)
    outputs = Outputs(config, job)
    before, after = (outputs_of(outputs, job, held(config, job, m), m) for m in (OLD, NEW))
    arithmetic = arithmetic_for(made.model.tensors, 5, "safetensors")
    for layer in range(LAYERS):
        routing = outputs._routings[layer]
        for n, (expert, token) in enumerate(zip(routing.expert.tolist(), routing.token.tolist(), strict=True)):
            expected = checksum_rows(arithmetic.outputs(made.slot(layer, expert), np.array([token])))[0]
            assert before[layer][n] == after[layer][n] == expected
        for expert_map in (OLD, NEW):
            serving = serving_slots(routing, expert_map[layer])
            assert set(serving.tolist()) == set(np.flatnonzero(expert_map[layer] >= 0).tolist())
    proof = outputs.compare(before, after)
    assert proof.before == proof.after == [hashlib.sha256(sums.tobytes()).hexdigest() for sums in before]
    assert len(set(proof.before)) == LAYERS
    assert (proof.different, proof.differences) == (0, [])
    assert proof.products == sum(map(len, before)) >= OLD.size
    assert proof.arithmetic == "the experts' gated MLP, dequantised, in exact sums"


def test_generated_weights_are_proven_too() -> None:
    case = Case(nodes=2, slots_per_rank=3, experts=6, kind="empty")
    config, job = config_of(case, 4), job_of(case, 4)
    outputs = Outputs(config, job)
    before, after = (outputs_of(outputs, job, held(config, job, m), m) for m in (job.old, job.new))
    proof = outputs.compare(before, after)
    assert proof.before == proof.after
    assert proof.arithmetic == "sums of all words of all tensors modulo 2^64"
    other = held(config, job, job.new)
    slot = int(np.flatnonzero(job.new[1, :3] >= 0)[0])
    other[0][1][2][slot].view(torch.uint8)[-1] ^= 1  # the last byte of a scale
    proof = outputs.compare(before, outputs_of(outputs, job, other, job.new))
    assert [was == now for was, now in zip(proof.before, proof.after, strict=True)] == [True, False, True]
    assert {(one.layer, one.expert, one.slot_after) for one in proof.differences} == {(1, job.new[1, slot], slot)}


def test_experts_that_nobody_held_are_left_out(made: Checkpoint) -> None:
    config, job = from_files(made, 2)
    old = OLD.copy()
    old[0][old[0] == 2] = 0
    old[1] = -1
    job = Job(old, NEW, job.plan, 2, True)
    outputs = Outputs(config, job)
    before, after = (outputs_of(outputs, job, held(config, job, m), m) for m in (old, NEW))
    assert set(outputs._routings[0].expert.tolist()) == {0, 1, 3}
    assert len(before[1]) == 0
    assert outputs.compare(before, after).different == 0


def run(made: Checkpoint, mishap: str, folder: Path) -> FunctionalProof:
    config, job = from_files(made, 4)
    launch(prove, (config, job, mishap, folder / "proof"), job.ranks)
    return from_json((folder / "proof").read_bytes())


def test_a_right_update_between_ranks_is_proven(made: Checkpoint, tmp_path: Path) -> None:
    proof = run(made, "none", tmp_path)
    assert proof.before == proof.after
    assert len(proof.before) == LAYERS
    assert proof.different == 0


@pytest.mark.parametrize("mishap", ["weights stay", "scales stay", "one bit of one scale", "w2 stays"])
def test_a_slot_that_computes_something_else_shows(mishap: str, made: Checkpoint, tmp_path: Path) -> None:
    """Slot 3 of layer 2, the second of rank 1, which gets expert 1 in place of expert 2."""
    proof = run(made, mishap, tmp_path)
    assert [was == now for was, now in zip(proof.before, proof.after, strict=True)] == [True, True, False]
    assert proof.different == len(proof.differences) > 0
    assert {(one.layer, one.expert, one.slot_after) for one in proof.differences} == {(2, 1, 3)}
    assert all(OLD[2, one.slot_before] == 1 for one in proof.differences)
