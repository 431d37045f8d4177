"""What each rank of the update benchmark does."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from stages.direct import direct_transfers
from stages.expert_map import slots_for
from stages.model import ModelSpec
from stages.synthetic import truth
from stages.topology import Topology
from stages.update import calibrate, pipelined, reference
from stages.update.config import UpdateOptions, UpdateStageConfig
from stages.update.foretold import foretold
from stages.update.job import make_job
from stages.update.link import connect_all, measure_link
from stages.update.nccl_memory import registrable
from stages.update.peak import Peak
from stages.update.rank import Rank
from stages.update.weights import allocate, checksums, fill
from tests.gpu.models import random_map

VARIANTS = {
    "reference": {"executor": "reference"},
    "nccl": {"transport": "nccl"},
    "nccl, unchecked": {"transport": "nccl", "verify_before_commit": False},
    "peer": {"transport": "peer"},
    "peer, unchecked": {"transport": "peer", "verify_before_commit": False},
    "nccl, least staging": {"transport": "nccl", "staging_mib": 64},
    "peer, least staging": {"transport": "peer", "staging_mib": 64},
    "gloo": {},
    "gloo, unchecked": {"verify_before_commit": False},
}


@dataclass(frozen=True)
class Question:
    """What all ranks must know of one benchmark."""

    model: ModelSpec
    redundant: int
    variants: tuple[str, ...]
    repeats: int
    staging_mib: float
    least_mib: float
    link_mib: int
    oversubscribe: bool
    nodes: int
    journal: str


def measure(rank: Rank, question: Question, found: Path) -> None:
    model = question.model
    assert model.layers is not None
    assert model.experts is not None
    rng = np.random.default_rng(0)
    slots = slots_for(model.experts, question.redundant, rank.ranks)
    old, new = (random_map(rng, model.layers, model.experts, slots) for _ in range(2))
    topology = Topology(nodes=question.nodes, gpus_per_node=rank.ranks // question.nodes)
    plan = direct_transfers(old, new, rank.ranks, topology.gpus_per_node, model.expert_bytes)
    job = make_job(old, new, plan, rank.ranks, topology.gpus_per_node, model.expert_bytes)
    own = slice(rank.rank * job.slots_per_rank, (rank.rank + 1) * job.slots_per_rank)
    with registrable(rank.device):
        weights = allocate(model.scaled_tensors(), model.layers, job.slots_per_rank, rank.device)
    layer, expert = (index.ravel() for index in np.indices((model.layers, model.experts)))
    expected = truth(model.scaled_tensors(), 0, layer, expert, rank.device.type)
    expected = expected.reshape(model.layers, model.experts, -1)
    connect_all(rank)
    calibrated = calibrate.measure(rank, replace(topology))
    results = []
    for repeat in range(question.repeats + 1):
        link = measure_link(rank, question.link_mib)
        for name in question.variants:
            options = UpdateOptions(
                staging_mib=question.staging_mib, oversubscribe=question.oversubscribe, journal=question.journal
            )
            changes = dict(VARIANTS[name])
            if "staging_mib" in changes:
                changes["staging_mib"] = question.least_mib
            config = UpdateStageConfig(replace(options, **changes), model, topology)
            fill(weights, config, old[:, own])
            rank.synchronize()
            began = time.perf_counter()
            peak = Peak(rank.device)
            if config.update.executor == "reference":
                run = reference.prepare(rank, config, job, weights, began)
            else:
                run = pipelined.prepare(rank, config, job, weights, expected, began)
            compiled = time.perf_counter() - began
            moved = run()
            taken = peak.nbytes()
            seconds = rank.slowest(moved.seconds)
            after = checksums(weights)
            wrong = int((after != expected[np.arange(model.layers)[:, None], new[:, own]]).sum())
            wrong = int(rank.slowest(wrong))
            split: dict[str, float] = {}
            for what, _, begin, end in moved.events:
                split[what] = split.get(what, 0.0) + end - begin
            del run
            if rank.rank == 0:
                received = int(job.received_bytes().max())
                way = "peer" if config.update.transport == "peer" else rank.backend
                predicted = foretold(replace(config, topology=calibrated), job, way).seconds
                results.append({
                    "model": model.name, "variant": name, "repeat": repeat, "seconds": seconds, "predicted": predicted,
                    "link": link, "wrong": wrong,
                    "received": received, "gb_per_s": received / seconds / 1e9, "efficiency": received / seconds / 1e9 / link,
                    "staging": moved.staging_bytes, "peak": taken, "compile": compiled, "batches": moved.batches,
                    "split": split, "slots": slots, "moved": int(job.received_bytes().sum()),
                })  # fmt: skip
    if rank.rank == 0:
        found.write_text(json.dumps(results))
