"""Measures what the executors need beside the bytes: real updates of small models, each taken apart by the cost model.

An update takes what the links need for its bytes, and so much more for each part (a layer, a batch) and each message.
How much is what explains best the times of a few models, whose experts are large, small, and of many tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from stages.checksum import checksum_rows
from stages.direct import direct_transfers
from stages.model import ModelSpec, TensorSpec
from stages.topology import Device, Floats, Topology
from stages.update import pipelined, reference
from stages.update.config import UpdateOptions, UpdateStageConfig
from stages.update.foretold import foretold
from stages.update.job import Job, make_job
from stages.update.link import connect_all
from stages.update.nccl_memory import registrable
from stages.update.rank import Rank
from stages.update.weights import allocate

MIB = 1 << 20
TRIES = 6
"""The first brings up what later ones use."""


@dataclass(frozen=True)
class Probe:
    """A model that moves between random maps: `tensors`: bytes of those of an expert."""

    layers: int
    slots_per_rank: int
    tensors: tuple[int, ...]
    staging_mib: float = 1024


PROBES = {
    "reference": (
        Probe(12, 20, (2 * MIB, 2 * MIB, 2 * MIB, MIB // 16, MIB // 16)),
        Probe(6, 96, (3 * MIB, MIB)),
        Probe(4, 128, (MIB, MIB, MIB, MIB)),
        Probe(8, 48, (4 * MIB, 4 * MIB)),
    ),
    "pipelined": (
        Probe(16, 24, (4 * MIB, 4 * MIB)),
        Probe(6, 16, (20 * MIB, 12 * MIB)),
        Probe(16, 24, (2 * MIB, 2 * MIB, 2 * MIB, MIB // 16, MIB // 16)),
        Probe(8, 48, (4 * MIB, 4 * MIB), staging_mib=256),
    ),
}


def measure_executors(rank: Rank, topology: Topology, probes: Mapping[str, Sequence[Probe]] = PROBES) -> Device:
    """The topology's device with the overheads of both executors, as they are here. All ranks call it and find the same."""
    device = topology.device
    bare = replace(
        topology, device=replace(device, layer_us=0.0, batch_us=0.0, layer_message_us=0.0, batch_message_us=0.0)
    )
    found = {}
    for executor, part in (("reference", "layer"), ("pipelined", "batch")):
        rows = [_take_apart(rank, bare, executor, part, probe) for probe in probes[executor]]
        found[f"{part}_us"], found[f"{part}_message_us"] = fit(*np.array(rows).T)
    return replace(device, **found)


def fit(seconds: Floats, bare: Floats, per_part: Floats, per_message: Floats) -> tuple[float, float]:
    """Microseconds of a part and of a message, neither below 0, with which `bare + part * per_part + message *
    per_message` is nearest to `seconds`, relatively. `per_*`: seconds that a microsecond of each costs."""
    both = np.stack([per_part, per_message], axis=1) / seconds[:, None]
    over = (seconds - bare) / seconds
    candidates = [np.zeros(2)]
    for columns in ([0, 1], [0], [1]):
        solved = np.zeros(2)
        solved[columns] = np.linalg.lstsq(both[:, columns], over, rcond=None)[0]
        if (solved >= 0).all():
            candidates.append(solved)
    best = min(candidates, key=lambda found: float(np.square(both @ found - over).sum()))
    return round(float(best[0]), 3), round(float(best[1]), 3)


def _take_apart(
    rank: Rank, bare: Topology, executor: str, part: str, probe: Probe
) -> tuple[float, float, float, float]:
    """What an update takes, what the links need of that, and what a microsecond a part and a message adds."""
    tensors = [TensorSpec(f"t{k}", [nbytes], "uint8") for k, nbytes in enumerate(probe.tensors)]
    slots = probe.slots_per_rank * rank.ranks
    experts = max(1, slots - slots // 8)
    model = ModelSpec(name="probe", layers=probe.layers, experts=experts, top_k=1, tensors=tensors)
    options = UpdateOptions(executor=executor, staging_mib=probe.staging_mib, journal=None)
    config = UpdateStageConfig(options, model, bare)
    rng = np.random.default_rng(0)
    old, new = (rng.permuted(np.tile(np.arange(slots) % experts, (probe.layers, 1)), axis=1) for _ in range(2))
    plan = direct_transfers(old, new, rank.ranks, bare.gpus_per_node, model.expert_bytes)
    job = make_job(old, new, plan, rank.ranks, bare.gpus_per_node, model.expert_bytes)
    seconds = _seconds(rank, config, job)

    def predicted(**overheads: float) -> float:
        given = replace(config, topology=replace(bare, device=replace(bare.device, **overheads)))
        return foretold(given, job, rank.backend).seconds

    links = predicted()
    return seconds, links, predicted(**{f"{part}_us": 1.0}) - links, predicted(**{f"{part}_message_us": 1.0}) - links


def _seconds(rank: Rank, config: UpdateStageConfig, job: Job) -> float:
    """Of one update, the middle of a few. All experts are zeros, so that each is as good as the first."""
    model = config.model
    assert model.layers is not None
    with registrable(rank.device):
        weights = allocate(model.tensors, model.layers, job.slots_per_rank, rank.device)
    for tensors in weights:
        for tensor in tensors:
            tensor.zero_()
    one = np.concatenate([checksum_rows(torch.zeros((1, spec.nbytes), dtype=torch.uint8)) for spec in model.tensors])
    truth = np.broadcast_to(one, (model.layers, model.experts or 0, len(one)))
    connect_all(rank)
    times = []
    for _ in range(TRIES):
        if config.update.executor == "reference":
            run = reference.prepare(rank, config, job, weights, 0.0)
        else:
            run = pipelined.prepare(rank, config, job, weights, truth, 0.0)
        times.append(rank.slowest(run().seconds))
    return float(np.median(times[1:]))
