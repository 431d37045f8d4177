"""What one rank does in each batch of an update: a value compiled from the plan, that executors carry out blindly.

`sends` and `arrivals` fill staging over the network, phase by phase; `writes` are what the batch commits: an expert goes
from staging, or from another slot of this rank, into a slot. The writes of a batch take effect together, as if all
sources were read first. To do that in place they are ordered in *chains*: each write comes before the one that
overwrites its source. Where a chain closes to a circle, its last write takes what its slot of origin held at first.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from itertools import pairwise
from typing import TYPE_CHECKING, Self, TypeVar

import numpy as np

from stages.exchanges import phases_of
from stages.transfers import Ints, Kind, TransferPlan

if TYPE_CHECKING:
    from stages.batches import Batches  # it brings numba

NONE = -1
Rows = TypeVar("Rows", bound="Table")


@dataclass(frozen=True)
class Table:
    """Columns of equal length, sorted by batch; `begin` `[B+1]` says where each batch begins."""

    begin: Ints
    layer: Ints
    expert: Ints

    def __len__(self) -> int:
        return len(self.layer)

    def of(self, batch: int) -> Self:
        """The rows of one batch."""
        return self.part(int(self.begin[batch]), int(self.begin[batch + 1]))

    def part(self, first: int, last: int) -> Self:
        """Rows `first` to `last` - 1, as one batch."""
        columns = {f.name: getattr(self, f.name)[first:last] for f in fields(self) if f.name != "begin"}
        return type(self)(begin=np.array([0, last - first]), **columns)


@dataclass(frozen=True)
class Sends(Table):
    """An expert goes to `peer`, into row `to_row` of its staging: out of `slot` of this rank, or out of `from_row` of
    its staging where it forwards what arrived in an earlier phase (the other is -1)."""

    phase: Ints
    peer: Ints
    slot: Ints
    from_row: Ints
    to_row: Ints


@dataclass(frozen=True)
class Arrivals(Table):
    """An expert comes from `peer` into row `row` of this rank's staging."""

    phase: Ints
    peer: Ints
    row: Ints


@dataclass(frozen=True)
class Writes(Table):
    """`slot` of this rank gets what `from_slot` of this rank or `from_row` of its staging holds (the other is -1).

    Writes of one `chain` lie together and in order; `circular` marks the last one of a chain that closes.
    """

    slot: Ints
    from_slot: Ints
    from_row: Ints
    chain: Ints
    circular: Ints

    def chains(self) -> list[Writes]:
        edges = np.flatnonzero(np.diff(self.chain, prepend=NONE, append=NONE)).tolist()
        return [self.part(first, last) for first, last in pairwise(edges)]


@dataclass(frozen=True)
class Program:
    """B batches of one rank. `after`: `[B]`, see `Batches`; `phases`: `[B]`, how many phases a batch has on any rank.
    Slots count on this rank, layers over all of the plan."""

    after: Ints
    phases: Ints
    sends: Sends
    arrivals: Arrivals
    writes: Writes

    def __len__(self) -> int:
        return len(self.after)


def compile_program(plan: TransferPlan, batches: Batches, rank: int, slots_per_rank: int) -> Program:
    """The program of `rank` in `plan`, which `batches` has cut."""
    first_slot = rank * slots_per_rank
    network = plan.network

    rows = _sorted(
        np.flatnonzero(network & (plan.src_rank == rank)), batches.stage, batches.phase, plan.dst_rank, batches.row
    )
    forwarded = batches.phase[rows] > 0
    sends = Sends(
        begin=_begin(batches.stage[rows], len(batches)),
        layer=plan.layer[rows],
        expert=plan.logical_expert[rows],
        phase=batches.phase[rows],
        peer=plan.dst_rank[rows],
        slot=np.where(forwarded, NONE, plan.src_slot[rows] - first_slot),
        from_row=np.where(forwarded, batches.row[_arrivals_of(plan, rows, plan.src_rank[rows])], NONE),
        to_row=batches.row[rows],
    )

    rows = _sorted(
        np.flatnonzero(network & (plan.dst_rank == rank)), batches.stage, batches.phase, plan.src_rank, batches.row
    )
    arrivals = Arrivals(
        begin=_begin(batches.stage[rows], len(batches)),
        layer=plan.layer[rows],
        expert=plan.logical_expert[rows],
        phase=batches.phase[rows],
        peer=plan.src_rank[rows],
        row=batches.row[rows],
    )

    rows = np.flatnonzero((plan.dst_rank == rank) & (plan.dst_slot >= 0))
    from_network = plan.kind[rows] != Kind.same_gpu
    source = np.where(from_network, batches.row[_arrivals_of(plan, rows, plan.dst_rank[rows])], NONE)
    writes = order_writes(
        batch=batches.commit[rows],
        layer=plan.layer[rows],
        expert=plan.logical_expert[rows],
        slot=plan.dst_slot[rows] - first_slot,
        from_slot=np.where(from_network, NONE, plan.src_slot[rows] - first_slot),
        from_row=source,
        batches=len(batches),
    )
    phases = phases_of(batches.stage[network], batches.phase[network], len(batches))
    return Program(batches.after, phases, sends, arrivals, writes)


def _sorted(rows: Ints, *keys: Ints) -> Ints:
    """`rows` in order of the first key, then the second, …; senders and receivers so agree on the order of messages."""
    return rows[np.lexsort([key[rows] for key in reversed(keys)])]


def _begin(batch: Ints, batches: int) -> Ints:
    return np.searchsorted(batch, np.arange(batches + 1))


def _arrivals_of(plan: TransferPlan, rows: Ints, rank: Ints) -> Ints:
    """[n]: the network row that brings the expert of each of `rows` to `rank` `[n]`; anything where there is none."""
    network = np.flatnonzero(plan.network)
    if not len(network):
        return np.zeros(len(rows), dtype=np.int64)
    experts, ranks = int(plan.logical_expert.max()) + 1, int(max(plan.dst_rank.max(), plan.src_rank.max())) + 1

    def key(of: Ints, at: Ints) -> Ints:
        return (plan.layer[of] * experts + plan.logical_expert[of]) * ranks + at

    arriving = key(network, plan.dst_rank[network])
    order = np.argsort(arriving)
    return network[order[np.minimum(np.searchsorted(arriving[order], key(rows, rank)), len(order) - 1)]]


def order_writes(
    batch: Ints, layer: Ints, expert: Ints, slot: Ints, from_slot: Ints, from_row: Ints, batches: int
) -> Writes:
    """The writes of all batches `[n]` in chains. A chain is a tree: each write that reads a slot comes before the one
    write that overwrites that slot in the same batch."""
    count = len(batch)
    slots = int(max(slot.max(initial=0), from_slot.max(initial=0))) + 1
    layers = int(layer.max(initial=0)) + 1
    place = (batch * layers + layer) * slots
    written = place + slot
    by_place = np.argsort(written)
    at = np.minimum(np.searchsorted(written[by_place], place + from_slot), max(0, count - 1))
    overwrites = by_place[at] if count else by_place
    reads = (from_slot != NONE) & (written[overwrites] == place + from_slot) if count else np.zeros(0, dtype=bool)
    parent = np.where(reads, overwrites, NONE)

    circular = _circle_heads(parent)
    root, depth = _roots(np.where(circular, NONE, parent))
    order = np.lexsort((-depth, root, batch))
    chain = np.cumsum(np.diff(root[order], prepend=NONE) != 0) - 1
    return Writes(
        begin=_begin(batch[order], batches),
        layer=layer[order],
        expert=expert[order],
        slot=slot[order],
        from_slot=from_slot[order],
        from_row=from_row[order],
        chain=chain,
        circular=circular[order].astype(np.int64),
    )


def _circle_heads(parent: Ints) -> Ints:
    """[n]: True for one member, the lowest, of each circle of the functional graph n -> parent[n]."""
    count = len(parent)
    target, lowest = parent.copy(), np.arange(count)
    for _ in range(max(1, count).bit_length()):  # pointer doubling: 1, 2, 4, … steps
        on = target != NONE
        lowest[on] = np.minimum(lowest[on], lowest[target[on]])
        target[on] = target[target[on]]
    circling = np.zeros(count, dtype=bool)
    circling[target[target != NONE]] = True  # only members of circles are reached after so many steps
    return circling & (lowest == np.arange(count))


def _roots(parent: Ints) -> tuple[Ints, Ints]:
    """[n], [n]: the end of each one's way up, and the number of steps to it; `parent` has no circles."""
    count = len(parent)
    at = np.where(parent == NONE, np.arange(count), parent)
    depth = (parent != NONE).astype(np.int64)
    for _ in range(max(1, count).bit_length()):
        depth = depth + depth[at]
        at = at[at]
    return at, depth
