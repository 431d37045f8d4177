"""When each hop goes: the rounds of every layer, and how few there could be."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from stages.plan.relay import Hops
from stages.topology import Topology
from stages.transfers import Ints, Kind, TransferPlan

MOST_AT_ONCE = 8


@dataclass(frozen=True)
class RoundCount:
    """[L]: the rounds of each layer, and a bound that no schedule can beat."""

    rounds: Ints
    least: Ints


def fabric_width(topology: Topology, tensors: int, group_ops: int) -> int:
    """Hops over its fabric that a GPU has time for during one crossing, at most 8, in groups of at most `group_ops`
    operations where that can be: one hop is `tensors` operations at each end."""
    if topology.nodes == 1:
        return 1
    ratio = int(topology.links.within_node.gb_per_s / topology.links.between_nodes.gb_per_s)
    return max(1, min(ratio, MOST_AT_ONCE, group_ops // (2 * tensors) - 1))


def direct_rounds(plan: TransferPlan, layers: int, ranks: int) -> TransferPlan:
    """The direct `plan`, whose rows are in order of layer, with rounds as few as each layer's largest degree."""
    from stages.plan.rounds import colour

    network = np.flatnonzero(plan.network)
    begin = np.searchsorted(plan.layer[network], np.arange(layers + 1))
    rounds = np.zeros(len(plan), dtype=np.int64)
    rounds[network] = colour(begin, plan.src_rank[network], plan.dst_rank[network], ranks)
    # Whoever rides along does so in the round of what it rides on, found by the slot that this goes to.
    slots = int(plan.dst_slot.max(initial=0)) + 1
    arrived = np.zeros(layers * slots, dtype=np.int64)
    arrived[plan.layer[network] * slots + plan.dst_slot[network]] = rounds[network]
    rides = plan.kind == Kind.free_rider
    rounds[rides] = arrived[plan.layer[rides] * slots + plan.src_slot[rides]]
    plan = replace(plan, round=rounds)
    return plan.select(np.argsort(plan.layer * (rounds.max(initial=0) + 1) + rounds, kind="stable"))


def relay_rounds(hops: Hops, layer: Ints, layers: int, ranks: int, width: int) -> Ints:
    """[N]: the round of each hop: in each layer by whichever of two ways takes fewer."""
    from stages.plan.rounds import fit, settle

    tails, depths = hops.tails(), hops.depths()
    busy = np.zeros(len(hops), dtype=np.int64)
    most = 1
    for crossing, room in ((True, 1), (False, width)):
        chosen = hops.crosses == crossing
        for end in (hops.src, hops.dst):
            key = layer[chosen] * ranks + end[chosen]
            degree = -(-np.bincount(key, minlength=layers * ranks) // room)
            busy[chosen] = np.maximum(busy[chosen], degree[key])
            most += int(degree.max(initial=0))
    most *= int(depths.max(initial=0)) + 1
    order = np.lexsort((-busy, -tails, layer))
    begin = np.searchsorted(layer[order], np.arange(layers + 1))
    first = fit(begin, order, hops.src, hops.dst, hops.crosses, hops.brought_by, ranks, width, most)
    second = _coloured(hops, layer, layers, ranks, width, tails, depths)
    settle(
        begin,
        np.lexsort((depths, layer)),
        second,
        hops.src,
        hops.dst,
        hops.crosses,
        hops.brought_by,
        ranks,
        width,
        most,
    )
    last = np.zeros((2, layers), dtype=np.int64)
    for way, rounds in enumerate((first, second)):
        np.maximum.at(last[way], layer, rounds)
    return np.where((last[1] < last[0])[layer], second, first)


def _coloured(hops: Hops, layer: Ints, layers: int, ranks: int, width: int, tails: Ints, depths: Ints) -> Ints:
    """[N]: rounds as few as the largest degrees over networks and over fabrics, whatever hops wait for. The colours with
    the longest tails of relays go first on the network, those with the deepest hops last on fabrics."""
    from stages.plan.rounds import colour

    rounds = np.zeros(len(hops), dtype=np.int64)
    for crossing, weight, room in ((True, -tails, 1), (False, depths, width)):
        chosen = np.flatnonzero(hops.crosses == crossing)
        chosen = chosen[np.argsort(layer[chosen], kind="stable")]
        begin = np.searchsorted(layer[chosen], np.arange(layers + 1))
        colours = colour(begin, hops.src[chosen], hops.dst[chosen], ranks)
        count = int(colours.max(initial=0)) + 1
        key = layer[chosen] * count + colours
        total = (
            np.bincount(key, weights=weight[chosen], minlength=layers * count).astype(np.float64).reshape(layers, count)
        )
        total[np.bincount(key, minlength=layers * count).reshape(layers, count) == 0] = np.inf
        place = np.argsort(np.argsort(total, axis=1, kind="stable"), axis=1, kind="stable")
        rounds[chosen] = place.reshape(-1)[key] // room
    return rounds


def count_relay_rounds(hops: Hops, layer: Ints, rounds: Ints, layers: int, ranks: int, width: int) -> RoundCount:
    """The bound: of the hops at one end of a GPU's link, sorted by the relays that follow them, the
    i-th cannot go before round i // room, and its tail comes after; likewise from the other side with what precedes.
    """
    found, least = np.zeros(layers, dtype=np.int64), np.zeros(layers, dtype=np.int64)
    np.maximum.at(found, layer, rounds + 1)
    tails, depths = hops.tails(), hops.depths()
    for crossing, room in ((True, 1), (False, width)):
        chosen = np.flatnonzero(hops.crosses == crossing)
        for end in (hops.src, hops.dst):
            key = layer[chosen] * ranks + end[chosen]
            for waits in (tails[chosen], depths[chosen]):
                order = np.lexsort((-waits, key))
                sorted_key = key[order]
                place = np.arange(len(order)) - np.searchsorted(sorted_key, sorted_key)
                np.maximum.at(least, layer[chosen[order]], place // room + 1 + waits[order])
    return RoundCount(found, least)
