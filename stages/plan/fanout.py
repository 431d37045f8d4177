"""How an item spreads inside a node: the GPU where a crossing enters, and the tree from there, or from the holders.

Every delivery over the fabric has a parent: a holder, the entry, or a rank that gets the item itself. Group by group
the cheapest entry and parents are chosen while all other groups stay as they are, a few times over. The cost of
putting a hop on a link grows with how busy the link is, steeply where it comes near the busiest of all, so that a
link with time to spare is never spared for a longer way. Apart from that, few hops and shallow trees are best: a
parent that has the item early and has few children yet, which makes binomial trees.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from stages.compiled import compiled, inner
from stages.transfers import Ints

SWEEPS = 4
STEEPNESS = 24
EXTRA_HOP = 0.02
DEPTH = 1e-3
LAYER = 1e-5
NONE = -1


@compiled
def spread(
    layer: Ints,
    node: Ints,
    need_begin: Ints,
    need_end: Ints,
    near_begin: Ints,
    near_end: Ints,
    need_rank: Ints,
    holder_rank: Ints,
    sender: Ints,
    ranks: int,
    gpus: int,
    rails: bool,
    net_seconds: float,
    fabric_seconds: float,
    busiest: float,
) -> tuple[Ints, Ints]:
    """[G]: the rank where each group's item enters its node, -1 where the node holds it; [N]: the rank that each need
    is served by inside the node, -1 where it is served by the crossing.

    Groups as in `Groups`; `sender` [G]: the rank that sends the crossing, -1 where there is none. `net_seconds`,
    `fabric_seconds`: of a hop on either link of a GPU. `busiest`: seconds for which some link is busy anyway.
    """
    entry, parent = np.full(len(layer), NONE, np.int64), np.full(len(need_rank), NONE, np.int64)
    net_in, fabric_in, fabric_out = np.zeros(ranks), np.zeros(ranks), np.zeros(ranks)
    layer_in, layer_out = np.zeros(ranks), np.zeros(ranks)
    net_share, fabric_share = net_seconds / busiest, fabric_seconds / busiest
    have, ready, order = np.empty(gpus, np.int64), np.empty(ranks), np.empty(gpus, np.int64)
    for sweep in range(SWEEPS):
        for g in range(len(layer)):
            if g == 0 or layer[g] != layer[g - 1]:
                layer_in[:], layer_out[:] = 0, 0
            if sweep > 0:
                _count(g, -1, entry, parent, need_begin, need_end, need_rank, net_in, fabric_in, fabric_out)
            entry[g] = NONE
            for n in range(need_begin[g], need_end[g]):
                parent[n] = NONE
            if sender[g] != NONE:
                if rails:
                    entry[g] = node[g] * gpus + sender[g] % gpus
                else:
                    entry[g] = _enter(
                        g, node, need_begin, need_end, need_rank, gpus, net_in, fabric_in, layer_in, net_share,
                        fabric_share,
                    )  # fmt: skip
            _grow(
                g, entry, parent, need_begin, need_end, near_begin, near_end, need_rank, holder_rank, fabric_out,
                layer_out, fabric_share, have, ready, order,
            )  # fmt: skip
            _count(g, 1, entry, parent, need_begin, need_end, need_rank, net_in, fabric_in, fabric_out)
            if entry[g] != NONE:
                layer_in[entry[g]] += 1
            for n in range(need_begin[g], need_end[g]):
                if parent[n] != NONE:
                    layer_out[parent[n]] += 1
    return entry, parent


@inner
def _price(load: float, share: float) -> float:
    """Of one hop more on a link that has `load`, each of them `share` of what the busiest link has to do."""
    return ((load + 1) * share) ** STEEPNESS


@inner
def _enter(
    g: int,
    node: Ints,
    need_begin: Ints,
    need_end: Ints,
    need_rank: Ints,
    gpus: int,
    net_in: npt.NDArray[np.float64],
    fabric_in: npt.NDArray[np.float64],
    layer_in: npt.NDArray[np.float64],
    net_share: float,
    fabric_share: float,
) -> int:
    """The rank of the group's node where its item enters best: one that needs it, unless those are too busy."""
    best, best_price = NONE, np.inf
    n = need_begin[g]
    for rank in range(node[g] * gpus, (node[g] + 1) * gpus):
        price = _price(net_in[rank], net_share) + LAYER * layer_in[rank] + EXTRA_HOP
        if n < need_end[g] and need_rank[n] == rank:
            price -= _price(fabric_in[rank], fabric_share) + EXTRA_HOP
            n += 1
        if price < best_price:
            best, best_price = rank, price
    return best


@inner
def _grow(
    g: int,
    entry: Ints,
    parent: Ints,
    need_begin: Ints,
    need_end: Ints,
    near_begin: Ints,
    near_end: Ints,
    need_rank: Ints,
    holder_rank: Ints,
    fabric_out: npt.NDArray[np.float64],
    layer_out: npt.NDArray[np.float64],
    fabric_share: float,
    have: Ints,
    ready: npt.NDArray[np.float64],
    order: Ints,
) -> None:
    """Give every need of the group its parent. `have`, `ready`, `order`: room to work in.

    The ranks with the least to do come first, so that they are there to be parents. `ready`: in how many steps from
    the start a rank could make its next delivery.
    """
    roots = 0
    if entry[g] != NONE:
        have[0], roots = entry[g], 1
        ready[entry[g]] = 0.0
    for h in range(near_begin[g], near_end[g]):
        have[roots] = holder_rank[h]
        ready[holder_rank[h]] = 0.0
        roots += 1
    members = 0
    for n in range(need_begin[g], need_end[g]):
        if need_rank[n] == entry[g]:
            continue
        at = members
        while at > 0 and fabric_out[need_rank[order[at - 1]]] > fabric_out[need_rank[n]]:
            order[at] = order[at - 1]
            at -= 1
        order[at] = n
        members += 1
    for m in range(members):
        best, best_price = NONE, np.inf
        for k in range(roots + m):
            rank = have[k]
            price = _price(fabric_out[rank], fabric_share) + DEPTH * ready[rank] + LAYER * layer_out[rank]
            if k >= roots:
                price += LAYER  # a hop out of a holder is a hop that is no relay
            if price < best_price:
                best, best_price = rank, price
        child = need_rank[order[m]]
        parent[order[m]] = best
        ready[best] += 1
        ready[child] = ready[best]
        fabric_out[best] += 1  # for those that follow; taken back below
        have[roots + m] = child
    for m in range(members):
        fabric_out[parent[order[m]]] -= 1


@inner
def _count(
    g: int,
    step: int,
    entry: Ints,
    parent: Ints,
    need_begin: Ints,
    need_end: Ints,
    need_rank: Ints,
    net_in: npt.NDArray[np.float64],
    fabric_in: npt.NDArray[np.float64],
    fabric_out: npt.NDArray[np.float64],
) -> None:
    """Put the group's hops on the links (`step` 1), or take them off (-1)."""
    if entry[g] != NONE:
        net_in[entry[g]] += step
    for n in range(need_begin[g], need_end[g]):
        if parent[n] != NONE:
            fabric_in[need_rank[n]] += step
            fabric_out[parent[n]] += step
