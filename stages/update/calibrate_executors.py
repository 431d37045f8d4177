"""Measures what the executors need beside the bytes: real updates of small models.

An update takes what the links need for its bytes, and so much more for each part (a layer, a batch) and each message, as
the cost model has it. How much is what explains best the times of a few models, whose experts are large, small, and of
many tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

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

KIB = 1 << 10
MIB = 1 << 20
STARTS, SHARES = (0.5, 4.0, 30.0, 250.0, 2000.0), (0.45, 0.6, 0.8, 1.0)
LEAST_SHARE = 0.05
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
        Probe(24, 4, (64 * KIB,)),
        Probe(12, 64, (64 * KIB,) * 4),
        Probe(6, 64, (4 * MIB, 4 * MIB, 4 * MIB, 3 * KIB, 3 * KIB, 3 * KIB)),
        Probe(12, 72, (MIB, MIB, MIB)),
        Probe(8, 48, (4 * MIB, 4 * MIB)),
        Probe(6, 24, (32 * MIB, 16 * MIB)),
        Probe(8, 40, (16 * MIB, 8 * MIB)),
    ),
    "pipelined": (
        Probe(16, 24, (4 * MIB, 4 * MIB)),
        Probe(6, 16, (20 * MIB, 12 * MIB)),
        Probe(16, 24, (2 * MIB, 2 * MIB, 2 * MIB, 64 * KIB, 64 * KIB)),
        Probe(8, 48, (4 * MIB, 4 * MIB), staging_mib=256),
    ),
}


def measure_executors(rank: Rank, topology: Topology, probes: Mapping[str, Sequence[Probe]] = PROBES) -> Device:
    """The topology's device with the overheads of both executors, as they are here. All ranks call it and find the same."""
    device = topology.device
    bare = replace(
        topology, device=replace(device, layer_us=0.0, batch_us=0.0, layer_message_us=0.0, batch_message_us=0.0)
    )
    found: dict[str, float] = {}
    for executor, names in (
        ("reference", ("layer_us", "layer_message_us", "layer_share")),
        ("pipelined", ("batch_us", "batch_message_us")),
    ):
        tried = [_try(rank, bare, executor, probe) for probe in probes[executor]]

        def predicted(*values: float, names: tuple[str, ...] = names, tried: list[_Tried] = tried) -> Floats:
            given = dict(zip(names, values, strict=True))
            return np.array([one.predicted(rank.backend, **given) for one in tried])

        values = fit(np.array([one.seconds for one in tried]), predicted, share="layer_share" in names)
        found |= dict(zip(names, values, strict=True))
    return replace(device, **found)


def fit(seconds: Floats, predicted: Callable[..., Floats], *, share: bool = False) -> tuple[float, ...]:
    """Microseconds of a part and of a message, neither below 0, and where asked for the `share` of the links' speed, with
    which `predicted` is nearest to `seconds`, relatively. By the simplex of Nelder and Mead (1965), as where one of two
    sets the pace there are kinks."""
    from scipy.optimize import minimize

    def off(given: Floats) -> float:
        return float(np.square(predicted(*given.tolist()) / seconds - 1).sum())

    starts = [STARTS, STARTS, SHARES][: 2 + share]
    first = np.array(min(product(*starts), key=lambda given: off(np.array(given))))
    found = minimize(
        off, first, method="Nelder-Mead", bounds=[(0.0, None), (0.0, None), (LEAST_SHARE, 1.0)][: 2 + share],
        options={
            "initial_simplex": np.vstack([first, first * (1 + np.diag([1.0, 1.0, -0.1][: 2 + share]))]),
            "xatol": 1e-3, "fatol": 1e-10, "maxfev": 600,
        },
    )  # fmt: skip
    return tuple(round(float(value), 3) for value in found.x)


@dataclass(frozen=True)
class _Tried:
    """An update that took `seconds`, and what it was."""

    seconds: float
    config: UpdateStageConfig
    job: Job

    def predicted(self, backend: str, **overheads: float) -> float:
        topology = self.config.topology
        given = replace(self.config, topology=replace(topology, device=replace(topology.device, **overheads)))
        return foretold(given, self.job, backend).seconds


def _try(rank: Rank, bare: Topology, executor: str, probe: Probe) -> _Tried:
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
    return _Tried(_seconds(rank, config, job), config, job)


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
