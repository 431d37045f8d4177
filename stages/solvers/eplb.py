"""DeepSeek's EPLB (github.com/deepseek-ai/EPLB), bit for bit and for all layers at once.

The published algorithm packs groups of experts to nodes, replicates the experts within each node, and packs the
replicas to the node's GPUs; the global form is the same with one group and one node. Its loops run over layers, then
items. Here they run over items alone, with each step taken in all layers and nodes together.

To give the same bits all of it is done in float32 and in the published order, and equal weights come in the order of
torch's default sort on the CPU, which is not stable: a sort of another library would place them differently.

Letters: L layers, E experts, P slots; rows N are layers or layers x nodes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from stages.errors import BadInput
from stages.expert_map import ExpertMap

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


class Rebalanced(NamedTuple):
    """`physical_to_logical_map` [L, P]; `logical_to_physical_map` [L, E, most replicas], -1 where an expert has fewer;
    `logical_count` [L, E]: the number of its replicas."""

    physical_to_logical_map: ExpertMap
    logical_to_physical_map: Ints
    logical_count: Ints


def rebalance_experts(
    weight: npt.NDArray[np.generic], num_replicas: int, num_groups: int, num_nodes: int, num_gpus: int
) -> Rebalanced:
    """Place [L, E] loads `weight` (any unit, whole numbers or floats) in P = `num_replicas` slots.

    Hierarchical exactly when the groups divide over the nodes, else global. Raises `BadInput` for sizes that cannot be.
    """
    if num_groups % num_nodes:
        num_groups = num_nodes = 1
    _check_sizes(weight.shape[1], num_replicas, num_groups, num_nodes, num_gpus)
    load = np.ascontiguousarray(weight, dtype=np.float32)
    layers, experts = load.shape
    node_experts, node_slots, node_gpus = experts // num_nodes, num_replicas // num_nodes, num_gpus // num_nodes

    # Experts sorted by node, [L, E]: `ordered` names the expert at each place, `place_of` is its inverse.
    place_of = _places_by_node(load, num_groups, num_nodes)
    ordered = _inverse(place_of)

    # From here on each row is one node of one layer.
    node_load = np.take_along_axis(load, ordered, axis=1).reshape(-1, node_experts)
    expert_of, replica_of, counts = replicate_experts(node_load, node_slots)
    share = np.take_along_axis(np.divide(node_load, counts, dtype=np.float32), expert_of, axis=1)
    gpu, position = balanced_packing(share, node_gpus)
    chosen = _inverse(gpu * (node_slots // node_gpus) + position)

    # Back to whole layers: the place of each slot's expert counts over all nodes.
    first = np.arange(num_nodes)[:, None] * node_experts
    places = np.take_along_axis(expert_of, chosen, axis=1).reshape(layers, num_nodes, node_slots) + first
    new_map = np.take_along_axis(ordered, places.reshape(layers, num_replicas), axis=1)
    replica = np.take_along_axis(replica_of, chosen, axis=1).reshape(layers, num_replicas)
    logical_count = np.take_along_axis(counts.reshape(layers, experts), place_of, axis=1)
    return Rebalanced(new_map, _slots_of_experts(new_map, replica, logical_count), logical_count)


def balanced_packing(weight: Floats, packs: int) -> tuple[Ints, Ints]:
    """Heaviest first, each item of [N, n] to the lightest pack with room: its pack, and its position there, [N, n]."""
    rows, items = weight.shape
    room = items // packs
    if room == 1:
        return np.tile(np.arange(items), (rows, 1)), np.zeros((rows, items), dtype=np.int64)
    order = _descending(weight)
    sorted_weight = np.take_along_axis(weight, order, axis=1)
    load = np.zeros((rows, packs), dtype=np.float32)
    filled = np.zeros((rows, packs), dtype=np.int64)
    flat_load, flat_filled = load.reshape(-1), filled.reshape(-1)
    start = np.arange(rows) * packs
    pack = np.empty((items, rows), dtype=np.int64)
    position = np.empty((items, rows), dtype=np.int64)
    for item, added in enumerate(np.ascontiguousarray(sorted_weight.T)):
        pack[item] = load.argmin(axis=1)
        at = start + pack[item]
        position[item] = flat_filled[at]
        flat_filled[at] += 1
        flat_load[at] += added
        flat_load[at[position[item] == room - 1]] = np.inf  # full: never the lightest again
    pack_of, position_of = np.empty_like(order), np.empty_like(order)
    np.put_along_axis(pack_of, order, pack.T, axis=1)
    np.put_along_axis(position_of, order, position.T, axis=1)
    return pack_of, position_of


def replicate_experts(weight: Floats, slots: int) -> tuple[Ints, Ints, Ints]:
    """One slot for each expert of [N, n], then one more at a time for the expert with the largest replica load.

    Returns the expert of each slot [N, slots], which of its replicas that is [N, slots], and their number [N, n].
    """
    rows, experts = weight.shape
    expert_of = np.tile(np.arange(slots), (rows, 1))
    replica_of = np.zeros((rows, slots), dtype=np.int64)
    counts = np.ones((rows, experts), dtype=np.int64)
    share = weight.copy()
    row = np.arange(rows)
    for slot in range(experts, slots):
        expert = share.argmax(axis=1)
        expert_of[:, slot] = expert
        replica_of[:, slot] = counts[row, expert]
        counts[row, expert] += 1
        share[row, expert] = weight[row, expert] / counts[row, expert].astype(np.float32)
    return expert_of, replica_of, counts


def _places_by_node(load: Floats, groups: int, nodes: int) -> Ints:
    """[L, E]: the place of each expert once groups are packed to nodes; node k has the k-th E / nodes places."""
    layers, experts = load.shape
    size = experts // groups
    # torch adds float32 in an order of its own, which decides the last bit.
    group_load = torch.from_numpy(load).view(layers, groups, size).sum(-1)
    node, position = balanced_packing(np.asarray(group_load, dtype=np.float32), nodes)
    first = (node * (groups // nodes) + position) * size
    return (first[:, :, None] + np.arange(size)).reshape(layers, experts)


def _slots_of_experts(new_map: ExpertMap, replica: Ints, counts: Ints) -> Ints:
    """[L, E, most replicas]: the slot of each replica of each expert, -1 where there is none."""
    layers, experts = counts.shape
    most = int(counts.max())
    slots = np.full((layers, experts * most), -1, dtype=np.int64)
    each = np.broadcast_to(np.arange(new_map.shape[1]), new_map.shape)
    np.put_along_axis(slots, new_map * most + replica, each, axis=1)
    return slots.reshape(layers, experts, most)


def _descending(weight: Floats) -> Ints:
    """[N, n]: the items of each row, heaviest first, equal ones in the order of torch's default sort."""
    return torch.from_numpy(weight).sort(-1, descending=True).indices.numpy()


def _inverse(permutation: Ints) -> Ints:
    """[N, n]: the inverse of each row."""
    inverse = np.empty_like(permutation)
    each = np.broadcast_to(np.arange(permutation.shape[1]), permutation.shape)
    np.put_along_axis(inverse, permutation, each, axis=1)
    return inverse


def _check_sizes(experts: int, slots: int, groups: int, nodes: int, gpus: int) -> None:
    if experts % groups:
        raise BadInput(f"eplb: {experts} experts do not divide evenly over model.num_groups={groups}.")
    if gpus % nodes:
        raise BadInput(f"eplb: {gpus} GPUs do not divide evenly over {nodes} nodes.")
    if slots % gpus:
        raise BadInput(f"eplb: {slots} slots do not divide evenly over {gpus} GPUs.")
    if slots < experts:
        raise BadInput(f"eplb: {slots} slots cannot hold {experts} experts.")
