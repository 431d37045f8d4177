"""Expert groups kept within nodes: which node each group lives on, in each layer."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from stages.errors import BadInput
from stages.expert_map import EMPTY, ExpertMap

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def check_groups(experts: int, groups: int, nodes: int, slots_of_node: int) -> None:
    """Raise `BadInput` unless the groups divide the experts and fit the nodes."""
    if experts % groups:
        raise BadInput(f"model.num_groups={groups} does not divide the {experts} experts of the loads evenly.")
    size = experts // groups
    if nodes * (slots_of_node // size) < groups:
        raise BadInput(
            f"place.locality=node_groups cannot be: a node has {slots_of_node} slots a layer, room for "
            f"{slots_of_node // size} of the {groups} groups of {size} experts, and there are {nodes} nodes; "
            "give more place.redundant_experts or fewer nodes."
        )


def nodes_of_groups(current: ExpertMap, experts: int, groups: int, nodes: int) -> npt.NDArray[np.bool_]:
    """[L, groups, nodes]: whether a node holds anything of a group in `current` [L, P]."""
    layers, slots = current.shape
    node = np.broadcast_to(np.arange(slots) // (slots // nodes), current.shape)
    layer = np.broadcast_to(np.arange(layers)[:, None], current.shape)
    filled = current != EMPTY
    on = np.zeros((layers, groups, nodes), dtype=bool)
    on[layer[filled], current[filled] // (experts // groups), node[filled]] = True
    return on


def kept_together(current: ExpertMap, experts: int, groups: int, nodes: int) -> npt.NDArray[np.bool_]:
    """[L]: whether every group is on one node alone."""
    return (nodes_of_groups(current, experts, groups, nodes).sum(axis=2) == 1).all(axis=1)


def spread_groups(load: Floats, groups: int, slots_of_node: Ints, nodes: int) -> Ints:
    """[L, groups]: the node of each group, so that the loads of the nodes are even. `slots_of_node`: [L].

    Heaviest first, each to the lightest node with room; then, in each layer, a group of the heaviest node is exchanged
    with a group of another, or moves over, while that lowers the larger of both loads.
    """
    layers, experts = load.shape
    weight = load.reshape(layers, groups, -1).sum(axis=2)
    room = slots_of_node // (experts // groups)
    out = np.empty((layers, groups), dtype=np.int64)
    for layer in range(layers):
        out[layer] = _spread(weight[layer], int(room[layer]), nodes)
    return out


def _spread(weight: Floats, room: int, nodes: int) -> Ints:
    """[groups]: the node of each group of one layer; a node has room for `room` groups."""
    load, used = np.zeros(nodes), np.zeros(nodes, dtype=np.int64)
    node_of = np.empty(len(weight), dtype=np.int64)
    for group in np.argsort(-weight, kind="stable"):
        node = int(np.where(used < room, load, np.inf).argmin())
        node_of[group] = node
        load[node] += weight[group]
        used[node] += 1
    while True:
        heavy = int(load.argmax())
        own = np.flatnonzero(node_of == heavy)
        # Columns: each group of another node, then a move to each node that has room.
        back = np.concatenate([np.where(node_of == heavy, np.inf, weight), np.zeros(nodes)])
        to = np.concatenate([node_of, np.arange(nodes)])
        possible = np.concatenate([node_of != heavy, (used < room) & (np.arange(nodes) != heavy)])
        given = weight[own][:, None] - np.where(possible, back, 0.0)
        larger = np.where(possible, np.maximum(load[heavy] - given, load[to] + given), np.inf)
        best = int(larger.argmin())
        row, column = divmod(best, larger.shape[1])
        if larger[row, column] >= load[heavy] * (1 - 1e-12):
            return node_of
        group, node, amount = own[row], to[column], given[row, column]
        node_of[group] = node
        if column < len(weight):
            node_of[column] = heavy
        else:
            used[heavy] -= 1
            used[node] += 1
        load[heavy] -= amount
        load[node] += amount
