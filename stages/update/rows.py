"""Carries out the rows of any plan, one layer after the other.

What the rounds of a layer bring lands in staging, relay hops leave from there, and slots are overwritten only after
the layer's last round. Everything moves as bytes, since not every backend sends every dtype.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
import torch.distributed as dist

from stages.errors import MoesaicError
from stages.transfers import Kind
from stages.update.exchange import exchange
from stages.update.job import Job

Row = tuple[int, int, int, int, int, int]
"""Logical expert, kind, source rank and slot, destination rank and slot."""


class RowMover:
    """The part of `job` that concerns one rank. `staging`: K tensors `[rows, bytes of tensor k]`."""

    def __init__(self, job: Job, rank: int, sample: list[torch.Tensor]) -> None:
        self._rank = rank
        self._job = job
        plan = job.plan.select((job.plan.src_rank == rank) | (job.plan.dst_rank == rank))
        self._plan = plan.select(np.lexsort((plan.round, plan.layer)))
        self._begin = np.searchsorted(self._plan.layer, np.arange(job.layers + 1)).tolist()
        staged = (self._plan.dst_rank == rank) & (self._plan.kind != Kind.free_rider)
        rows = int(np.bincount(self._plan.layer[staged], minlength=1).max())
        self.staging = [
            torch.empty((rows, tensor[0].nbytes), dtype=torch.uint8, device=tensor.device) for tensor in sample
        ]

    def move(self, layer: int, tensors: list[torch.Tensor]) -> None:
        """Bring the slots of one layer, K tensors `[slots_per_rank, …]`, to the new map."""
        plan = self._plan.select(np.arange(self._begin[layer], self._begin[layer + 1]))
        first_slot = self._rank * self._job.slots_per_rank
        state = _Layer(
            number=layer,
            rank=self._rank,
            first_slot=first_slot,
            held=self._job.old[layer, first_slot : first_slot + self._job.slots_per_rank].tolist(),
            slots=[tensor.view(tensor.shape[0], -1).view(torch.uint8) for tensor in tensors],
            staging=self.staging,
        )
        columns = (plan.logical_expert, plan.kind, plan.src_rank, plan.src_slot, plan.dst_rank, plan.dst_slot)
        rows = list(zip(*(column.tolist() for column in columns), strict=True))
        begin = [0, *(np.flatnonzero(np.diff(plan.round)) + 1).tolist(), len(rows)]
        for start, stop in pairwise(begin):
            state.round(rows[start:stop])
        state.commit()


@dataclass
class _Layer:
    """One layer on its way. `held`: the old map of this rank's slots; `staged`: logical expert -> row of staging;
    `landing`: (logical expert, local slot) to overwrite in the end."""

    number: int
    rank: int
    first_slot: int
    held: list[int]
    slots: list[torch.Tensor]
    staging: list[torch.Tensor]
    staged: dict[int, int] = field(default_factory=dict)
    landing: list[tuple[int, int]] = field(default_factory=list)

    def round(self, rows: list[Row]) -> None:
        """Sends read what earlier rounds staged, or the old content of slots."""
        ops: list[dist.P2POp] = []
        sources = [self._source(row) if row[2] == self.rank else [] for row in rows]
        for (expert, kind, src_rank, _, dst_rank, dst_slot), source in zip(rows, sources, strict=True):
            if dst_rank != self.rank:
                ops += [dist.P2POp(dist.isend, tensor, dst_rank) for tensor in source]
                continue
            if dst_slot >= 0:
                self.landing.append((expert, dst_slot - self.first_slot))
            if kind == Kind.free_rider:
                continue
            row = self.staged.setdefault(expert, len(self.staged))
            for k, stage in enumerate(self.staging):
                if src_rank == self.rank:
                    stage[row].copy_(source[k])
                else:
                    ops.append(dist.P2POp(dist.irecv, stage[row], src_rank))
        exchange(ops)

    def commit(self) -> None:
        for expert, slot in self.landing:
            for target, stage in zip(self.slots, self.staging, strict=True):
                target[slot].copy_(stage[self.staged[expert]])

    def _source(self, row: Row) -> list[torch.Tensor]:
        """The bytes that leave: of the slot, where the old map has the expert there, or of staging."""
        expert, kind, _, src_slot, _, _ = row
        if kind == Kind.free_rider:
            return []
        slot = src_slot - self.first_slot
        if src_slot >= 0 and self.held[slot] == expert:
            return [tensor[slot] for tensor in self.slots]
        if expert in self.staged:
            return [stage[self.staged[expert]] for stage in self.staging]
        raise MoesaicError(
            f"transfers.parquet: in layer {self.number} rank {self.rank} is to send expert {expert}, which it neither "
            "holds nor has received in an earlier round."
        )
