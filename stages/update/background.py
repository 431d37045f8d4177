"""Updates that go on while a model computes: layers are staged on streams of their own, and committed between two of
its steps, as many layers at a time as staging holds."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from stages.errors import Corruption
from stages.expert_map import ExpertMap
from stages.staging import Budget
from stages.transfers import Ints, TransferPlan
from stages.update import pipelined
from stages.update.config import UpdateOptions
from stages.update.lane import NO_HOOKS
from stages.update.live import NO_TRUTH, LiveLayers, truth_of
from stages.update.machinery import Machinery, assemble, transport_of
from stages.update.program import compile_program
from stages.update.rank import Rank
from stages.update.stopped import all_faults, why_stopped


@dataclass(frozen=True)
class Committed:
    """Layers `[n]` of the engine that are done, and their map `[n, P]`."""

    layer_ids: list[int]
    maps: ExpertMap


class BackgroundUpdate:
    """Made by all ranks, which all call `advance` until it is `done`. The first layers are on their way when it is made."""

    def __init__(self, rank: Rank, layers: LiveLayers, options: UpdateOptions) -> None:
        self._rank, self._layers, self._options = rank, layers, options
        self._config, job = layers.config(options), layers.job()
        way = transport_of(rank, options)
        most = job.most_arrivals()
        spent = self._config.staging_budget(way, most)
        rows = min(spent.rows, most)
        spent = Budget(max(2, rows), max(1, rows), max(1, rows), spent.packed and max(1, rows))
        self._steps = steps_that_fit(job.plan, job.layers, job.ranks, spent.rows)
        batches = pipelined.batches_of(job, spent, self._steps, None)
        self._program = compile_program(job.plan, batches, rank.rank, job.slots_per_rank)
        # The last batch of each step.
        stage_step = np.zeros(len(batches), dtype=np.int64)
        committed = np.maximum(batches.commit, 0)
        np.maximum.at(stage_step, committed, self._steps[job.plan.layer])
        self._step_of_batch = np.maximum.accumulate(stage_step)
        truth = truth_of(rank, layers, job) if options.verify_before_commit else NO_TRUTH
        self._machinery: Machinery = assemble(
            rank, way, self._config, self._program, layers.weights, spent,
            truth if options.verify_before_commit else None, lambda batch: None, time.perf_counter(), NO_HOOKS,
        )  # fmt: skip
        self._next, self._told = 0, -1
        self._stage()

    @property
    def done(self) -> bool:
        return self._next == len(self._program)

    @property
    def ready(self) -> bool:
        """Would `advance` wait for nobody?"""
        return self.done or self._machinery.lane.staged(self._next)

    def advance(self) -> Committed:
        """Commit the layers that are staged, and start on the next ones."""
        step = int(self._steps[-1])
        if not self.done:
            step = int(self._step_of_batch[self._next])
            while not self.done and self._step_of_batch[self._next] == step:
                self._commit()
                self._next += 1
                self._stage()
        if self.done:
            step = int(self._steps[-1])
            self._machinery.close()
        chosen = (self._steps > self._told) & (self._steps <= step)
        self._told = step
        ids = [layer for layer, mine in zip(self._layers.layer_ids, chosen.tolist(), strict=True) if mine]
        return Committed(ids, self._layers.new[chosen])

    def abandon(self) -> None:
        """Let what is on its way arrive, and commit none of it."""
        self._machinery.lane.drain()
        self._machinery.close()

    def _stage(self) -> None:
        if not self.done:
            self._machinery.lane.stage(self._next)

    def _commit(self) -> None:
        for _ in range(self._options.retries):
            if self._machinery.lane.commit(self._next):
                return
            self._stage()
        if not self._machinery.lane.commit(self._next):
            names = [tensor.name for tensor in self._config.model.tensors]
            faults = all_faults(self._rank, self._machinery.lane.faults)
            tries = self._options.retries + 1
            why = why_stopped(faults, names, self._layers.layer_ids, tries, self._next, len(self._program))
            raise Corruption(f"{why}: the same call goes on from there.")


def steps_that_fit(plan: TransferPlan, layers: int, ranks: int, rows: int) -> Ints:
    """[L]: consecutive layers get one step while no rank receives more than `rows` experts in it."""
    network = plan.network
    arrivals = np.zeros((layers, ranks), dtype=np.int64)
    np.add.at(arrivals, (plan.layer[network], plan.dst_rank[network]), 1)
    steps = np.zeros(layers, dtype=np.int64)
    held = np.zeros(ranks, dtype=np.int64)
    for layer in range(layers):
        held += arrivals[layer]
        if layer and held.max() > rows:
            held = arrivals[layer].copy()
            steps[layer] = steps[layer - 1] + 1
        elif layer:
            steps[layer] = steps[layer - 1]
    return steps
