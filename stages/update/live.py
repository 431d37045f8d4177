"""Pipelined updates of weights that an engine holds: some layers of the model, in place, in the engine's own ranks."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
import torch
import torch.distributed as dist

from stages.checksum import checksum_tensors
from stages.direct import direct_transfers
from stages.expert_map import ExpertMap
from stages.model import ModelSpec, TensorSpec
from stages.topology import Topology
from stages.update import pipelined
from stages.update.config import UpdateOptions, UpdateStageConfig
from stages.update.job import Job
from stages.update.progress_board import ProgressBoard
from stages.update.rank import Rank
from stages.update.stopped import all_faults, why_stopped
from stages.update.truth import Sums, agreed_truth
from stages.update.weights import Weights

LIVE = UpdateOptions(journal=None)
NO_TRUTH: Sums = np.zeros((0, 0, 0), dtype=np.uint64)


@dataclass(frozen=True)
class LiveLayers:
    """Layers whose tensors are alike. `weights`: `[L][K]` bytes `[slots_per_rank, n]`; maps `[L, P]`; `layer_ids`: `[L]`,
    the engine's."""

    layer_ids: list[int]
    weights: Weights
    old: ExpertMap
    new: ExpertMap
    ranks: int
    nodes: int

    def config(self, options: UpdateOptions) -> UpdateStageConfig:
        tensors = [TensorSpec(f"tensor {k}", [t.shape[1]], "uint8") for k, t in enumerate(self.weights[0])]
        topology = Topology(nodes=self.nodes, gpus_per_node=self.ranks // self.nodes)
        return UpdateStageConfig(options, ModelSpec(tensors=tensors), topology)

    def job(self) -> Job:
        expert_bytes = sum(tensor.shape[1] for tensor in self.weights[0])
        gpus_per_node = self.ranks // self.nodes
        plan = direct_transfers(self.old, self.new, self.ranks, gpus_per_node, expert_bytes, layer_ids=self.layer_ids)
        return Job(self.old, self.new, plan, self.ranks, direct=True)

    def alike(self) -> Iterator[LiveLayers]:
        """Runs of neighbouring layers whose tensors have the same sizes."""
        shapes = [[tuple(tensor.shape) for tensor in tensors] for tensors in self.weights]
        first = 0
        for _, group in groupby(shapes):
            part = slice(first, first + len(list(group)))
            first = part.stop
            yield replace(
                self, layer_ids=self.layer_ids[part], weights=self.weights[part], old=self.old[part], new=self.new[part]
            )


def live_rank(rank: int, ranks: int, device: torch.device) -> Rank:
    return Rank(rank, ranks, device, dist.get_backend(), ProgressBoard(None, ranks))


def truth_of(rank: Rank, layers: LiveLayers, job: Job) -> Sums:
    """[L, E, K]: what all holders of each expert agree on; raises `Corruption` where they do not."""
    found = checksum_tensors([tensor for tensors in layers.weights for tensor in tensors])
    kinds = len(layers.weights[0])
    own = np.stack([np.stack(found[first : first + kinds], axis=1) for first in range(0, len(found), kinds)])
    gathered = rank.gather(torch.from_numpy(own.view(np.int64))).numpy().view(np.uint64)
    names = [f"tensor {k}" for k in range(kinds)]
    return agreed_truth(np.concatenate(list(gathered), axis=1), job.old, job.experts, names, job.ranks)


def update_layers(rank: Rank, layers: LiveLayers, options: UpdateOptions) -> tuple[ExpertMap, str]:
    """Move the weights of these layers, on all ranks; the map `[L, P]` that they have then, and why they stopped if they
    did."""
    config, job = layers.config(options), layers.job()
    if not len(job.plan):
        return layers.new, ""
    truth = truth_of(rank, layers, job) if options.verify_before_commit else NO_TRUTH
    moved = pipelined.prepare(rank, config, job, layers.weights, truth, time.perf_counter())()
    if moved.committed == moved.batches:
        return layers.new, ""
    names = [tensor.name for tensor in config.model.tensors]
    faults = all_faults(rank, moved.faults)
    why = why_stopped(faults, names, layers.layer_ids, options.retries + 1, moved.committed, moved.batches)
    return moved.held, why
