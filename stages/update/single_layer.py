"""What one rank does in one layer: pure values derived from a direct plan, and the strings that tools parse.

Slots count over all P of the layer. Nothing here touches a weight or the network (`stages.update.api` does).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stages.expert_map import EMPTY
from stages.transfers import Ints, Kind, TransferPlan

CASES = {kind: kind.name.replace("_", "-") for kind in Kind}


@dataclass(frozen=True)
class Decision:
    """How the new expert of `slot` gets there. `kind` None: it is there already. `source`: a slot of this rank
    (same_gpu, free_rider) or the rank that sends (same_node, cross_node)."""

    slot: int
    kind: Kind | None = None
    source: int = -1

    def __str__(self) -> str:
        text = f"handle_recv_of_dst_expert_location dst_expert_location={self.slot} "
        if self.kind is None:
            return text + "case=unchanged"
        name = "chosen_src_rank" if self.kind >= Kind.same_node else "src_expert_location"
        return text + f"case={CASES[self.kind]} {name}={self.source}"


@dataclass(frozen=True)
class Holding:
    """An expert held in the old map, its first slot, and the ranks that it is sent to."""

    logical_expert: int
    slot: int
    same_node_dst_ranks: list[int]
    cross_node_dst_ranks: list[int]

    def __str__(self) -> str:
        return (
            f"create_isend_ops_of_logical_expert_id logical_expert_id={self.logical_expert} "
            f"src_expert_location={self.slot} same_node_dst_ranks={self.same_node_dst_ranks} "
            f"cross_node_dst_ranks={self.cross_node_dst_ranks}"
        )


@dataclass(frozen=True)
class Op:
    """One expert to or from `peer`: sent out of `slot` (direction isend), or received for it (irecv)."""

    direction: str
    peer: int
    slot: int


@dataclass(frozen=True)
class LayerMoves:
    """`decisions`: one for each slot that is not empty in the new map, in order. `holdings`: in order of first slot.

    `ops`: per logical expert, in ascending order, its ops in order; held experts that nobody needs have none.
    `asides`: (slot, staged for slot) copies within the rank, before anything is overwritten.
    `copies`: (staged for slot, slot) copies after all ops are done.
    """

    decisions: list[Decision]
    holdings: list[Holding]
    ops: list[tuple[int, list[Op]]]
    asides: list[tuple[int, int]]
    copies: list[tuple[int, int]]

    def debug_lines(self) -> list[str]:
        """The decisions as strings, one each, in the order in which they are taken."""
        return [str(line) for line in (*self.decisions, *self.holdings)]


def moves_of_rank(
    plan: TransferPlan, old: Sequence[int], new: Sequence[int], rank: int, slots_per_rank: int
) -> LayerMoves:
    """What `rank` does in the one layer whose rows `plan` holds. `old`, `new`: `[P]`."""
    here = range(rank * slots_per_rank, (rank + 1) * slots_per_rank)
    rows = _rows(plan, plan.dst_rank == rank)
    arrivals = {
        dst_slot: Decision(dst_slot, Kind(kind), src_rank if kind >= Kind.same_node else src_slot)
        for _, kind, src_rank, src_slot, _, dst_slot in rows
    }
    decisions = [arrivals.get(slot, Decision(slot)) for slot in here if new[slot] != EMPTY]

    holdings: dict[int, Holding] = {}
    for slot in here:
        if old[slot] != EMPTY:
            holdings.setdefault(old[slot], Holding(old[slot], slot, [], []))
    ops: dict[int, list[Op]] = {expert: [] for expert in holdings}
    for expert, kind, _, src_slot, dst_rank, _ in _rows(plan, plan.network & (plan.src_rank == rank)):
        holding = holdings[expert]
        (holding.same_node_dst_ranks if kind == Kind.same_node else holding.cross_node_dst_ranks).append(dst_rank)
        ops[expert].append(Op("isend", dst_rank, src_slot))
    for expert, kind, src_rank, _, _, dst_slot in rows:
        if kind >= Kind.same_node:
            ops[expert] = [Op("irecv", src_rank, dst_slot)]

    changed = [decision for decision in decisions if decision.kind is not None]
    return LayerMoves(
        decisions=decisions,
        holdings=list(holdings.values()),
        ops=sorted(ops.items()),
        asides=[(decision.source, decision.slot) for decision in changed if decision.kind == Kind.same_gpu],
        copies=[(d.source if d.kind == Kind.free_rider else d.slot, d.slot) for d in changed],
    )


def metrics_line(moves: LayerMoves, expert_bytes: int, ranks: int, gpus_per_node: int, rank: int) -> str:
    """Bytes that `rank` sends and receives, per peer GPU, per node, within its node and across nodes."""
    from einops import reduce

    nodes = -(-ranks // gpus_per_node)
    text = "[ExpertLocationUpdater] "
    for direction in ("isend", "irecv"):
        peers = [op.peer for _, ops in moves.ops for op in ops if op.direction == direction]
        of_gpu: Ints = np.bincount(np.array(peers, dtype=np.int64), minlength=nodes * gpus_per_node) * expert_bytes
        of_node: Ints = reduce(of_gpu, "(nodes gpus) -> nodes", "sum", gpus=gpus_per_node)
        within = int(of_node[rank // gpus_per_node])
        text += (
            f"{direction}_nbytes_of_gpu={of_gpu[:ranks].tolist()} {direction}_nbytes_of_node={of_node.tolist()} "
            f"{direction}_nbytes_curr_node={within} {direction}_nbytes_cross_node={int(of_node.sum()) - within} "
        )
    return text


def _rows(plan: TransferPlan, mask: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> list[tuple[int, ...]]:
    """Rows of the plan as tuples (logical expert, kind, src rank, src slot, dst rank, dst slot)."""
    part = plan.select(mask)
    columns = (part.logical_expert, part.kind, part.src_rank, part.src_slot, part.dst_rank, part.dst_slot)
    return list(zip(*(column.tolist() for column in columns), strict=True))
