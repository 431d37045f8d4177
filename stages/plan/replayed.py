"""A plan carried out on paper: does every row hold what it sends, and do the rows make the new map of the old one?

Shape letters: N rows of the plan. An *item* is an expert of a layer as one number, layer * experts + logical expert.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from stages.expert_map import EMPTY, ExpertMap
from stages.topology import Topology
from stages.transfers import Ints, Kind, TransferPlan

Mask = npt.NDArray[np.bool_]


def replay_faults(plan: TransferPlan, old: ExpertMap, new: ExpertMap, topology: Topology) -> Iterator[str]:
    """A sentence for each way in which `plan` does not lead from `old` to `new`, both `[L, P]`.

    Experts that no slot of `old` holds come from files, so that no row brings them.
    """
    layers, slots = old.shape
    ranks = topology.ranks
    outside = (plan.layer < 0) | (plan.layer >= layers) | (plan.logical_expert < 0)
    for rank, slot in ((plan.src_rank, plan.src_slot), (plan.dst_rank, plan.dst_slot)):
        outside |= (rank < 0) | (rank >= ranks) | (slot < -1) | (slot >= slots)
        outside |= (slot >= 0) & (slot // (slots // ranks) != rank)
    if outside.any():
        yield f"{_row(plan, outside)} names a layer, rank or slot that is not there"
        return
    experts = int(max(old.max(initial=0), new.max(initial=0), plan.logical_expert.max(initial=0))) + 1
    item = plan.layer * experts + plan.logical_expert
    for fault, rows in _sender_faults(plan, item, old, experts, topology).items():
        if rows.any():
            yield f"{_row(plan, rows)} {fault}"
    yield from _end_faults(plan, old, new)


def _sender_faults(plan: TransferPlan, item: Ints, old: ExpertMap, experts: int, topology: Topology) -> dict[str, Mask]:
    """[N] for each fault: rows whose sender cannot have what it sends."""
    ranks, kind = topology.ranks, plan.kind
    per_rank = old.shape[1] // ranks
    layer, slot = np.nonzero(old != EMPTY)
    held = np.unique((layer * experts + old[layer, slot]) * ranks + slot // per_rank)
    source_holds = np.isin(item * ranks + plan.src_rank, held)
    in_slot = (plan.src_slot >= 0) & (old[plan.layer, plan.src_slot] == plan.logical_expert)
    landed_here = _landed_before(plan, item, ranks)
    local = (kind == Kind.same_gpu) | (kind == Kind.free_rider)
    node = topology.node_of_rank()
    within = node[plan.src_rank] == node[plan.dst_rank]
    from_source = (kind == Kind.same_gpu) | (kind == Kind.same_node) | (kind == Kind.cross_node)
    return {
        "does not keep to the GPUs that its kind says": (local != (plan.src_rank == plan.dst_rank))
        | ((kind == Kind.same_node) & ~within)
        | ((kind == Kind.cross_node) & within),
        "sends from a slot that does not hold the expert in the old map": from_source & ~(source_holds & in_slot),
        "passes on what its GPU has not received before": (kind == Kind.relay) & ~landed_here,
        "rides along with an expert that its GPU does not receive": (kind == Kind.free_rider)
        & ~np.isin(item * ranks + plan.dst_rank, (item * ranks + plan.dst_rank)[plan.network]),
    }


def _landed_before(plan: TransferPlan, item: Ints, ranks: int) -> Mask:
    """[N]: whether the sender of a row received the same expert in an earlier round of the layer, into the slot named."""
    network = plan.network
    rounds = int(plan.round.max(initial=0)) + 1
    arrival = (item * ranks + plan.dst_rank)[network]
    order = np.argsort(arrival * rounds + plan.round[network], kind="stable")
    arrival, arrival_round = arrival[order], plan.round[network][order]
    arrival_slot = plan.dst_slot[network][order]
    wanted = item * ranks + plan.src_rank
    at = np.searchsorted(arrival, wanted)
    found = np.append(arrival, -1)[at] == wanted
    earlier = np.append(arrival_round, rounds)[at] < plan.round
    return found & earlier & (np.append(arrival_slot, EMPTY)[at] == plan.src_slot)


def _end_faults(plan: TransferPlan, old: ExpertMap, new: ExpertMap) -> Iterator[str]:
    slots = old.shape[1]
    lands = plan.dst_slot >= 0
    place = (plan.layer * slots + plan.dst_slot)[lands]
    times = np.bincount(place, minlength=old.size).reshape(old.shape)
    if (times > 1).any():
        layer, slot = np.argwhere(times > 1)[0]
        yield f"layer {layer} slot {slot} is written {times[layer, slot]} times"
    reached = old.copy()
    reached.flat[place] = plan.logical_expert[lands]
    reached[new == EMPTY] = EMPTY
    span = max(int(old.max(initial=0)), int(new.max(initial=0))) + 1
    row = np.arange(len(old))[:, None] * span
    nowhere = ~np.isin(row + new, (row + old)[old != EMPTY]) & (new != EMPTY)  # read from files
    wrong = np.argwhere((reached != new) & ~nowhere)
    if len(wrong):
        layer, slot = wrong[0]
        more = f", and {len(wrong) - 1:,} slots more" if len(wrong) > 1 else ""
        yield (
            f"carried out on the old map, the plan leaves expert {reached[layer, slot]} in layer {layer} slot {slot}, "
            f"where the new map has {new[layer, slot]}{more}"
        )


def _row(plan: TransferPlan, rows: Mask) -> str:
    first = int(np.flatnonzero(rows)[0])
    count = int(rows.sum())
    return (
        f"row {first} (layer {plan.layer[first]}, expert {plan.logical_expert[first]})"
        f"{f' and {count - 1:,} more rows, each' if count > 1 else ''}"
    )
