"""Policy `relay`: an expert crosses to a node that lacks it once, and spreads inside.

Which holder sends, where the expert enters and who passes it on are chosen over the whole plan (`senders`, `fanout`),
when in each layer, by `rounds`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stages.needs import Needs
from stages.plan.groups import Groups, group_needs
from stages.topology import Topology
from stages.transfers import Ints, Kind, TransferPlan

NONE = -1


@dataclass(frozen=True)
class Hops:
    """[N]: hops over the network or a fabric. `holder`: index of the holder that sends, -1 for a relay. `need`: index of
    the need that it serves, -1 where the expert passes through. `brought_by`: the hop that a relay waits for, or -1.
    """

    item: Ints
    src: Ints
    dst: Ints
    crosses: npt.NDArray[np.bool_]
    holder: Ints
    need: Ints
    brought_by: Ints

    def __len__(self) -> int:
        return len(self.item)

    def tails(self) -> Ints:
        """[N]: how many hops at least follow one after the other once this one is done."""
        tail = np.zeros(len(self), dtype=np.int64)
        relays = np.flatnonzero(self.brought_by != NONE)
        while len(relays):
            longer = relays[tail[self.brought_by[relays]] <= tail[relays]]
            np.maximum.at(tail, self.brought_by[longer], tail[longer] + 1)
            relays = longer
        return tail

    def depths(self) -> Ints:
        """[N]: how many hops come before this one."""
        depth = np.zeros(len(self), dtype=np.int64)
        waits = self.brought_by != NONE
        while True:
            deeper = np.where(waits, depth[self.brought_by] + 1, 0)
            if np.array_equal(deeper, depth):
                return depth
            depth = deeper


def relay_hops(needs: Needs, topology: Topology, expert_bytes: int) -> Hops:
    """The hops of needs that are all held."""
    from stages.plan.fanout import spread
    from stages.plan.senders import choose_senders

    gpus, ranks, holders = topology.gpus_per_node, needs.ranks, needs.holders
    groups = group_needs(needs, gpus)
    crosses = groups.crosses
    net, fabric, node = (
        max(expert_bytes, 1) / (speed * 1e9)
        for speed in (
            topology.links.between_nodes.gb_per_s,
            topology.links.within_node.gb_per_s,
            topology.node_gb_per_s,
        )
    )
    unavoidable = _unavoidable_seconds(needs, groups, topology.nodes, gpus, net, fabric, node)
    chosen = choose_senders(
        groups.layer[crosses], groups.node[crosses], groups.holder_begin[crosses], groups.holder_end[crosses],
        holders.rank, ranks, gpus, topology.rails, net, node, unavoidable,
    )  # fmt: skip
    sender = np.full(len(crosses), NONE, dtype=np.int64)
    sender[crosses] = holders.rank[chosen]
    sent = np.bincount(holders.rank[chosen], minlength=ranks)
    busiest = max(unavoidable, sent.max() * net, sent.reshape(-1, gpus).sum(axis=1).max() * node)
    entry, parent = spread(
        groups.layer, groups.node, groups.need_begin, groups.need_end, groups.near_begin, groups.near_end,
        needs.rank, holders.rank, sender, ranks, gpus, topology.rails, net, fabric, busiest or 1.0,
    )  # fmt: skip
    return _hops(needs, groups, chosen, entry, parent)


def _unavoidable_seconds(
    needs: Needs, groups: Groups, nodes: int, gpus: int, net: float, fabric: float, node: float
) -> float:
    """What the plan takes, whoever sends: what enters nodes, what ranks get from their nodes, the mean of what the GPUs
    of a node pass on, and the doublings of the largest group, from its holders or its entry to all that need it."""
    crosses = groups.crosses
    size = groups.need_end - groups.need_begin
    entering = np.bincount(groups.node[crosses], minlength=nodes).max(initial=0)
    from_near = np.repeat(~crosses, size)
    received = np.bincount(needs.rank[from_near], minlength=1).max(initial=0)
    passed_on = np.bincount(groups.node, weights=size - crosses, minlength=nodes).max(initial=0)
    # Trees: one step more than they need, so that balance never makes chains of them where there is little to balance.
    roots = np.maximum(groups.near_end - groups.near_begin, 1)
    doublings = np.ceil(np.log2((size - crosses + roots) / roots)).max(initial=0)
    return float(
        max(
            entering * node,
            entering / gpus * net,
            received * fabric,
            passed_on / gpus * fabric,
            (doublings + 1) * fabric,
        )
    )


def _hops(needs: Needs, groups: Groups, chosen: Ints, entry: Ints, parent: Ints) -> Hops:
    """Crossings first, then what goes over fabrics, each in order of (item, rank)."""
    holders, ranks = needs.holders, needs.ranks
    need_key = needs.item * ranks + needs.rank
    holder_key = holders.item * ranks + holders.rank
    group_of_need = np.repeat(np.arange(len(entry)), groups.need_end - groups.need_begin)
    crossing = np.flatnonzero(groups.crosses)
    hop_of_group = np.full(len(entry), NONE, dtype=np.int64)
    hop_of_group[crossing] = np.arange(len(crossing))

    entry_need = _find(need_key, groups.item[crossing] * ranks + entry[crossing])
    inside = np.flatnonzero(parent != NONE)
    hop_of_need = np.full(len(parent), NONE, dtype=np.int64)
    hop_of_need[inside] = len(crossing) + np.arange(len(inside))
    hop_of_need[entry_need[entry_need != NONE]] = np.flatnonzero(entry_need != NONE)

    parent_key = needs.item[inside] * ranks + parent[inside]
    parent_holder, parent_need = _find(holder_key, parent_key), _find(need_key, parent_key)
    # A parent holds the item, or gets it for itself, or is the entry where it passes through.
    passing = hop_of_group[group_of_need[inside]]
    brought = np.where(parent_need != NONE, hop_of_need[parent_need], passing)
    return Hops(
        item=np.concatenate([groups.item[crossing], needs.item[inside]]),
        src=np.concatenate([holders.rank[chosen], parent[inside]]),
        dst=np.concatenate([entry[crossing], needs.rank[inside]]),
        crosses=np.arange(len(crossing) + len(inside)) < len(crossing),
        holder=np.concatenate([chosen, parent_holder]),
        need=np.concatenate([entry_need, inside]),
        brought_by=np.concatenate([np.full_like(crossing, NONE), np.where(parent_holder != NONE, NONE, brought)]),
    )


def relay_rows(needs: Needs, hops: Hops, rounds: Ints, expert_bytes: int) -> TransferPlan:
    """The rows of `hops` in `rounds` [N], with the copies that need no network, in order."""
    slots = needs.slots_per_rank
    need_slot = np.append(needs.slot, NONE)
    landed = np.where(hops.brought_by == NONE, NONE, need_slot[hops.need[hops.brought_by]])
    from_holder = hops.holder != NONE
    network_kind = np.where(
        from_holder, np.where(hops.crosses, int(Kind.cross_node), int(Kind.same_node)), int(Kind.relay)
    )
    riding, copied = needs.free_rider, needs.same_gpu
    arrival = np.full(len(needs.item) + 1, 0, dtype=np.int64)
    arrival[hops.need] = np.where(hops.need != NONE, rounds, 0)
    key = needs.item * needs.ranks + needs.rank
    ride_round = arrival[np.searchsorted(key, riding.item * needs.ranks + riding.slot // slots)]

    item = np.concatenate([copied.item, riding.item, hops.item])
    kind = np.concatenate(
        [np.full(len(copied.item), Kind.same_gpu), np.full(len(riding.item), Kind.free_rider), network_kind]
    )
    when = np.concatenate([np.zeros_like(copied.item), ride_round, rounds])
    dst_slot = np.concatenate([copied.slot, riding.slot, need_slot[hops.need]])
    layer = item // needs.experts
    order = np.lexsort((dst_slot, kind, item, when, layer))
    columns = {
        "layer": layer,
        "logical_expert": item % needs.experts,
        "kind": kind.astype(np.int64),
        "src_rank": np.concatenate([copied.slot // slots, riding.slot // slots, hops.src]),
        "src_slot": np.concatenate(
            [copied.source, riding.source, np.where(from_holder, needs.holders.slot[hops.holder], landed)]
        ),
        "dst_rank": np.concatenate([copied.slot // slots, riding.slot // slots, hops.dst]),
        "dst_slot": dst_slot,
        "round": when,
        "bytes": np.full(len(item), expert_bytes, dtype=np.int64),
    }
    return TransferPlan(**{name: column[order] for name, column in columns.items()})


def _find(keys: Ints, wanted: Ints) -> Ints:
    """[N]: the index in the sorted `keys` of each of `wanted`; -1 where it is not there."""
    at = np.searchsorted(keys, wanted)
    return np.where(np.append(keys, NONE)[at] == wanted, at, NONE)
