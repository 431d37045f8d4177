"""The functional proof: random tokens through the experts of all ranks, before the update and after it.

The router is logical and the arithmetic exact, so the outputs are the same bits wherever the experts are.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from stages.checksum import checksum_rows
from stages.expert_map import EMPTY, ExpertMap
from stages.functional import MOST_DIFFERENCES, Difference, FunctionalProof
from stages.update.arithmetic import arithmetic_for
from stages.update.config import UpdateStageConfig
from stages.update.job import Job
from stages.update.rank import Rank
from stages.update.routing import Ints, Routing, most_replicas, route, serving_slots
from stages.update.weights import Weights

Sums = npt.NDArray[np.uint64]
DEFAULT_TOP_K = 2


class Outputs:
    """What the experts of a job make of tokens, one 64-bit checksum an output; N of them in each layer's order."""

    def __init__(self, config: UpdateStageConfig, job: Job) -> None:
        self._job = job
        self._arithmetic = arithmetic_for(config.model.scaled_tensors(), config.seed, config.origin)
        needs = most_replicas([job.old, job.new], job.experts)
        top_k = config.model.top_k or DEFAULT_TOP_K
        self._routings = [
            route(config.seed, layer, there := _held_in_both(job, layer), needs[layer, there], top_k)
            for layer in range(job.layers)
        ]

    def of(self, rank: Rank, weights: Weights, expert_map: ExpertMap) -> list[Sums]:
        """[L] of [N]: the outputs of all ranks, whose slots hold what `expert_map` says. All ranks call it."""
        parts = self.own(rank.rank, weights, expert_map)
        together = torch.from_numpy(np.concatenate(parts).view(np.int64)).to(rank.device)
        dist.all_reduce(together)  # each output is computed by one rank, and 0 elsewhere
        ends = np.cumsum([len(part) for part in parts])[:-1]
        return np.split(together.cpu().numpy().view(np.uint64), ends)

    def own(self, rank: int, weights: Weights, expert_map: ExpertMap) -> list[Sums]:
        """[L] of [N]: those that the slots of one rank serve, 0 for the others."""
        return [
            self._layer(rank, tensors, routing, row)
            for tensors, routing, row in zip(weights, self._routings, expert_map, strict=True)
        ]

    def _layer(self, rank: int, tensors: list[torch.Tensor], routing: Routing, row: npt.NDArray[np.int64]) -> Sums:
        sums = np.zeros(len(routing.expert), dtype=np.uint64)
        serving = serving_slots(routing, row)
        per_rank = self._job.slots_per_rank
        for slot in range(per_rank):
            served = np.flatnonzero(serving == rank * per_rank + slot)
            if len(served):
                outputs = self._arithmetic.outputs([tensor[slot] for tensor in tensors], routing.token[served])
                sums[served] = checksum_rows(outputs)
        return sums

    def compare(self, before: list[Sums], after: list[Sums]) -> FunctionalProof:
        differences: list[Difference] = []
        different = 0
        for layer, (routing, was, now) in enumerate(zip(self._routings, before, after, strict=True)):
            wrong = np.flatnonzero(was != now)
            different += len(wrong)
            slots = [serving_slots(routing, expert_map[layer])[wrong] for expert_map in (self._job.old, self._job.new)]
            columns = (routing.expert[wrong], routing.token[wrong], *slots)
            found = (Difference(layer, *row) for row in zip(*(column.tolist() for column in columns), strict=True))
            differences += list(found)[: MOST_DIFFERENCES - len(differences)]
        return FunctionalProof(
            arithmetic=self._arithmetic.title,
            products=sum(len(sums) for sums in before),
            different=different,
            before=[hashlib.sha256(sums.tobytes()).hexdigest() for sums in before],
            after=[hashlib.sha256(sums.tobytes()).hexdigest() for sums in after],
            differences=differences,
        )


def _held_in_both(job: Job, layer: int) -> Ints:
    """The experts that are there before the update and after it."""
    both = np.intersect1d(job.old[layer], job.new[layer])
    return both[both != EMPTY].astype(np.int64)
