"""What becomes of the experts that are parked in staging when an update stops: those that no slot holds are put down.

A layer has at least as many slots as experts. So for each expert that no slot holds there is a slot with nothing in it,
or with what another slot holds too: on a cycle that was opened, the one that has been read and not yet overwritten.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from stages.batches import Batches, parked
from stages.expert_map import EMPTY, ExpertMap
from stages.transfers import Ints, TransferPlan
from stages.update.program import NONE, Arrivals, Program, Sends, order_writes


@dataclass(frozen=True)
class PutDown:
    """N experts, each from row `row` of the staging of rank `rank` into `slot` (of all P) of its layer: within the rank
    where `landing` is -1, else over the network in batch `batch`, by way of row `landing` of the receiver's staging."""

    layer: Ints
    expert: Ints
    rank: Ints
    row: Ints
    slot: Ints
    landing: Ints
    batch: Ints

    def __len__(self) -> int:
        return len(self.layer)

    def done(self, held: ExpertMap, batches: int) -> ExpertMap:
        """`held` `[L, P]` when the first `batches` batches are committed."""
        out = held.copy()
        there = self.batch < batches
        out[self.layer[there], self.slot[there]] = self.expert[there]
        return out

    def program(self, rank: int, slots_per_rank: int) -> Program:
        """What `rank` does. Each batch waits for the one before, so that one free row of staging is enough."""
        owner, network = self.slot // slots_per_rank, self.landing != NONE
        batches = int(self.batch.max(initial=-1)) + 1
        out = _by_batch(network & (self.rank == rank), self.batch, owner)
        sends = Sends(
            begin=np.searchsorted(self.batch[out], np.arange(batches + 1)),
            layer=self.layer[out],
            expert=self.expert[out],
            phase=np.zeros_like(out),
            peer=owner[out],
            slot=np.full_like(out, NONE),
            from_row=self.row[out],
            to_row=self.landing[out],
        )
        come = _by_batch(network & (owner == rank), self.batch, self.rank)
        arrivals = Arrivals(
            begin=np.searchsorted(self.batch[come], np.arange(batches + 1)),
            layer=self.layer[come],
            expert=self.expert[come],
            phase=np.zeros_like(come),
            peer=self.rank[come],
            row=self.landing[come],
        )
        own = np.flatnonzero(owner == rank)
        writes = order_writes(
            batch=self.batch[own],
            layer=self.layer[own],
            expert=self.expert[own],
            slot=self.slot[own] - rank * slots_per_rank,
            from_slot=np.full_like(own, NONE),
            from_row=np.where(network, self.landing, self.row)[own],
            batches=batches,
        )
        return Program(np.arange(batches) - 1, np.ones(batches, dtype=np.int64), sends, arrivals, writes)


def _by_batch(mask: np.ndarray, batch: Ints, peer: Ints) -> Ints:
    rows = np.flatnonzero(mask)
    return rows[np.lexsort((peer[rows], batch[rows]))]


def plan_put_down(
    plan: TransferPlan, batches: Batches, held: ExpertMap, committed: int, *,
    ranks: int, rows: int, faulty: Collection[tuple[int, int]] = (),
) -> PutDown:  # fmt: skip
    """Where the experts go that wait in staging (`rows` a rank) after `committed` batches, and that no slot of `held`
    `[L, P]` holds: into a slot of the same rank if one can be had, or of a rank that is not the receiver of a pair
    (sender, receiver) in `faulty`, and into one that was to be overwritten rather than one that has its final expert.
    """
    slots_per_rank = held.shape[1] // ranks
    waiting = parked(batches, committed)
    waiting = waiting[~(held[plan.layer[waiting]] == plan.logical_expert[waiting, None]).any(axis=1)]
    _, first = np.unique(np.stack([plan.layer[waiting], plan.logical_expert[waiting]]), axis=1, return_index=True)
    waiting = waiting[np.sort(first)]
    kept = np.zeros((ranks, rows), dtype=bool)
    kept[plan.dst_rank[waiting], batches.row[waiting]] = True
    free_row = kept.argmin(axis=1)
    final = np.ones(held.shape, dtype=bool)
    to_come = (batches.commit >= committed) & (plan.dst_slot >= 0)
    final[plan.layer[to_come], plan.dst_slot[to_come]] = False
    wrong = np.zeros((ranks, ranks), dtype=bool)
    for sender, receiver in faulty:
        wrong[sender, receiver] = True

    held = held.copy()
    arrivals = np.zeros(ranks, dtype=np.int64)
    chosen: list[tuple[int, int, int]] = []
    for n in waiting.tolist():
        layer, rank = int(plan.layer[n]), int(plan.dst_rank[n])
        _, place, count = np.unique(held[layer], return_inverse=True, return_counts=True)
        spare = np.flatnonzero((held[layer] == EMPTY) | (count[place] > 1))
        owner = spare // slots_per_rank
        best = np.lexsort((arrivals[owner], final[layer, spare], wrong[rank, owner], owner != rank))[0]
        to = int(owner[best])
        chosen.append((int(spare[best]), NONE if to == rank else int(free_row[to]), int(arrivals[to]) * (to != rank)))
        arrivals[to] += to != rank
        held[layer, spare[best]] = plan.logical_expert[n]
    slot, landing, batch = np.array(chosen, dtype=np.int64).reshape(-1, 3).T
    return PutDown(
        plan.layer[waiting], plan.logical_expert[waiting], plan.dst_rank[waiting], batches.row[waiting],
        slot, landing, batch,
    )  # fmt: skip
