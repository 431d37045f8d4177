"""What each rank of the update benchmark does."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from stages.expert_map import ExpertMap
from stages.model import ModelSpec
from stages.needs import needs_between
from stages.plan.policies import schedule
from stages.synthetic import truth
from stages.topology import Topology
from stages.transfers import TransferPlan
from stages.update import calibrate, pipelined, reference
from stages.update.config import UpdateOptions, UpdateStageConfig
from stages.update.exchange import exchange
from stages.update.foretold import foretold
from stages.update.job import make_job
from stages.update.link import connect_all
from stages.update.nccl_memory import registrable
from stages.update.peak import Peak
from stages.update.rank import Rank
from stages.update.weights import allocate, checksums, fill

GROUP_OPS, LINK_TRIES = 64, 3
VARIANTS = {
    "reference": {"executor": "reference"},
    "nccl": {"transport": "nccl"},
    "nccl, unchecked": {"transport": "nccl", "verify_before_commit": False},
    "peer": {"transport": "peer"},
    "peer, unchecked": {"transport": "peer", "verify_before_commit": False},
    "gloo": {},
    "gloo, unchecked": {"verify_before_commit": False},
}


@dataclass(frozen=True)
class Way:
    """A plan by `policy` for ranks that are counted to so many `nodes`."""

    nodes: int
    policy: str
    plan: TransferPlan

    @classmethod
    def of(cls, policy: str, old: ExpertMap, new: ExpertMap, topology: Topology, model: ModelSpec) -> Way:
        needs = needs_between(old, new, topology.ranks)
        found = schedule(policy, needs, topology, len(old), model.expert_bytes, len(model.tensors), GROUP_OPS)
        return cls(topology.nodes, policy, found.transfers)


@dataclass(frozen=True)
class Question:
    """What all ranks must know of one benchmark: what moves from `old` to `new` [L, P], and how.

    `stagings`: MiB, for the variants that batches are made for; the reference executor stages a layer.
    """

    model: ModelSpec
    old: ExpertMap
    new: ExpertMap
    ways: tuple[Way, ...]
    variants: tuple[str, ...]
    stagings: tuple[float, ...]
    repeats: int
    link_mib: int
    oversubscribe: bool
    journal: str

    def runs(self) -> list[tuple[Way, str, float]]:
        """Each way by each variant with each staging, but the reference once."""
        return [
            (way, variant, staging)
            for way in self.ways
            for variant in self.variants
            for staging in (self.stagings[:1] if variant == "reference" else self.stagings)
        ]


def measure(rank: Rank, question: Question, found: Path) -> None:
    model, old, new = question.model, question.old, question.new
    assert model.layers is not None
    assert model.experts is not None
    slots = old.shape[1] // rank.ranks
    own = slice(rank.rank * slots, (rank.rank + 1) * slots)
    with registrable(rank.device):
        weights = allocate(model.scaled_tensors(), model.layers, slots, rank.device)
    layer, expert = (index.ravel() for index in np.indices((model.layers, model.experts)))
    expected = truth(model.scaled_tensors(), 0, layer, expert, rank.device.type)
    expected = expected.reshape(model.layers, model.experts, -1)
    connect_all(rank)
    calibrated = {
        nodes: calibrate.measure(rank, Topology(nodes=nodes, gpus_per_node=rank.ranks // nodes))
        for nodes in dict.fromkeys(way.nodes for way in question.ways)
    }
    results = []
    for repeat in range(question.repeats + 1):
        link = measure_all_to_all(rank, question.link_mib)
        for way, name, staging in question.runs():
            topology = Topology(nodes=way.nodes, gpus_per_node=rank.ranks // way.nodes)
            job = make_job(old, new, way.plan, rank.ranks, topology.gpus_per_node, model.expert_bytes)
            options = UpdateOptions(
                staging_mib=staging, oversubscribe=question.oversubscribe, journal=question.journal, **VARIANTS[name]
            )
            config = UpdateStageConfig(options, model, topology)
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
                transport = "peer" if config.update.transport == "peer" else rank.backend
                predicted = foretold(replace(config, topology=calibrated[way.nodes]), job, transport).seconds
                results.append({
                    "model": f"{model.name}:{model.layers}", "nodes": way.nodes, "policy": way.policy, "variant": name,
                    "asked_mib": staging, "repeat": repeat, "seconds": seconds, "predicted": predicted,
                    "link": link, "wrong": wrong,
                    "received": received, "gb_per_s": received / seconds / 1e9, "efficiency": received / seconds / 1e9 / link,
                    "staging": moved.staging_bytes, "peak": taken, "compile": compiled, "batches": moved.batches,
                    "calibrated": described(calibrated[way.nodes]), "split": split, "slots": old.shape[1], "moved": int(job.received_bytes().sum()),
                })  # fmt: skip
    if rank.rank == 0:
        found.write_text(json.dumps(results))


def described(topology: Topology) -> str:
    links = (f"{link.gb_per_s:.0f} GB/s" for link in (topology.links.within_node, topology.links.between_nodes))
    device = ", ".join(f"{key} {value}" for key, value in asdict(topology.device).items())
    return f"{topology.nodes} nodes: {' and '.join(links)}, {device}"


def measure_all_to_all(rank: Rank, mib: int) -> float:
    """GB/s into each rank, and out of it, when all send `mib` MiB in equal parts to all others at once; the best of a
    few tries after a warm-up."""
    others = [peer for peer in range(rank.ranks) if peer != rank.rank]
    part = (mib << 20) // len(others)
    outgoing = torch.zeros(len(others), part, dtype=torch.uint8, device=rank.device)
    incoming = torch.empty_like(outgoing)
    best = float("inf")
    for attempt in range(1 + LINK_TRIES):
        rank.barrier()
        begin = time.perf_counter()
        sends = [dist.P2POp(dist.isend, row, peer) for row, peer in zip(outgoing, others, strict=True)]
        exchange(sends + [dist.P2POp(dist.irecv, row, peer) for row, peer in zip(incoming, others, strict=True)])
        rank.synchronize()
        seconds = rank.slowest(time.perf_counter() - begin)
        if attempt:
            best = min(best, seconds)
    return outgoing.nbytes / best / 1e9
