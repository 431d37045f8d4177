"""How much a placement moves, what that costs, and how the shares of a placement are given to ranks so that it is little.

A *moved slot* is an expert that a rank needs and did not hold. It costs 1 where another rank of its node held the expert,
and where none did, as much more as the link between nodes is slower than the one within.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from stages.expert_map import EMPTY, ExpertMap
from stages.topology import Topology

Ints = npt.NDArray[np.int64]
Weights = npt.NDArray[np.float32]


def cross_node_factor(topology: Topology) -> float:
    """What a byte from another node costs, one from the same node being 1."""
    return topology.links.within_node.gb_per_s / topology.links.between_nodes.gb_per_s


def bringing_costs(current: ExpertMap, experts: int, topology: Topology, factor: float | None = None) -> Weights:
    """[E, R]: what it costs in one layer to bring each expert to each rank; 0 where it is. `current`: [P].

    `factor`: what crossing nodes costs, if not what the links say.
    """
    cross = cross_node_factor(topology) if factor is None else factor
    ranks, nodes = topology.ranks, topology.nodes
    rank_of_slot = np.arange(len(current)) // (len(current) // ranks)
    filled = np.flatnonzero(current != EMPTY)
    held = np.zeros((experts, ranks), dtype=bool)
    held[current[filled], rank_of_slot[filled]] = True
    near = np.repeat(held.reshape(experts, nodes, -1).any(axis=2), topology.gpus_per_node, axis=1)
    return np.where(held, 0.0, np.where(near, 1.0, cross)).astype(np.float32)


def moved_and_cost(new: ExpertMap, weight: Weights) -> tuple[int, float]:
    """Moved slots of one layer, and what they cost. `new`: [P]; `weight`: [E, R]."""
    ranks = weight.shape[1]
    rank, expert = _needed(new.reshape(ranks, -1))
    paid = weight[expert, rank]
    return int((paid > 0).sum()), float(paid.sum())


def _needed(shares: ExpertMap) -> tuple[Ints, Ints]:
    """The share and the expert of everything that shares need, each expert of a share once. `shares`: [R, S]."""
    share, slot = np.nonzero((shares != EMPTY) & (_nth(shares) == 0))
    return share, shares[share, slot]


def relabelled(
    new: ExpertMap, current: ExpertMap, experts: int, topology: Topology, *, within_nodes: bool
) -> ExpertMap:
    """[L, P]: the shares of the ranks in `new` given to ranks anew, at the least cost from `current`, slot by slot.

    What a rank holds together stays together, so the balance is the same; `within_nodes`: so does what a node holds.
    Only ranks with as many empty slots change places. The least cost is found by assignment (Jonker and Volgenant, as
    in scipy), over the ranks or over the nodes and, for each pair of them, over their ranks.
    """
    from scipy.optimize import linear_sum_assignment

    ranks, gpus = topology.ranks, topology.gpus_per_node
    nodes = topology.nodes if within_nodes else 1
    shares = new.reshape(len(new), ranks, -1)
    out = np.empty_like(shares)
    for layer, share in enumerate(shares):
        weight = bringing_costs(current[layer], experts, topology)
        which, expert = _needed(share)
        cost = np.zeros((ranks, ranks), dtype=np.float32)  # [share, rank]
        np.add.at(cost, which, weight[expert])
        holes = (share < 0).sum(axis=1)
        cost[holes[:, None] != holes] = np.float32(weight.sum()) + 1.0
        if nodes == 1:
            share_of, rank_of = linear_sum_assignment(cost)
        else:
            inner = {
                (a, b): linear_sum_assignment(cost[a * gpus : (a + 1) * gpus, b * gpus : (b + 1) * gpus])
                for a in range(nodes) for b in range(nodes)
            }  # fmt: skip
            whole = np.array(
                [[cost[a * gpus + inner[a, b][0], b * gpus + inner[a, b][1]].sum() for b in range(nodes)] for a in range(nodes)]
            )  # fmt: skip
            pairs = list(zip(*linear_sum_assignment(whole), strict=True))
            share_of = np.concatenate([a * gpus + inner[a, b][0] for a, b in pairs])
            rank_of = np.concatenate([b * gpus + inner[a, b][1] for a, b in pairs])
        out[layer, rank_of] = share[share_of]
    return arranged(out.reshape(new.shape), current, ranks)


def arranged(new: ExpertMap, current: ExpertMap, ranks: int) -> ExpertMap:
    """[L, P]: the slots of each rank in another order: what a slot holds already stays there, the rest in order."""
    per_rank = new.shape[1] // ranks
    old, wanted = current.reshape(-1, per_rank), new.reshape(-1, per_rank)
    same = old[:, :, None] == wanted[:, None, :]  # [L x R, slot of old, slot of wanted]
    # The n-th slot with an expert stays if at least n slots of the rank are wanted for it, and the other way round.
    stays = _nth(old) < same.sum(axis=2)
    placed = _nth(wanted) < same.sum(axis=1)
    out = old.copy()
    to, of = np.argsort(stays, axis=1, kind="stable"), np.argsort(placed, axis=1, kind="stable")
    rest = (~stays).sum(axis=1)[:, None] > np.arange(per_rank)
    row = np.broadcast_to(np.arange(len(out))[:, None], rest.shape)[rest]
    out[row, to[rest]] = wanted[row, of[rest]]
    return out.reshape(new.shape)


def _nth(values: ExpertMap) -> Ints:
    """[N, S]: how many earlier slots of the row hold the same."""
    earlier = np.tri(values.shape[1], k=-1, dtype=bool)
    return ((values[:, :, None] == values[:, None, :]) & earlier).sum(axis=2)
