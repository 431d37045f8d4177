"""DeepSeek's EPLB as published (github.com/deepseek-ai/EPLB): loops over layers, then items, on torch tensors.

The measure of `stages.solvers.eplb` in both senses: what it must equal, and what it must be faster than.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rebalance_experts(weight: Tensor, slots: int, groups: int, nodes: int, gpus: int) -> tuple[Tensor, Tensor, Tensor]:
    """[L, E] loads -> physical_to_logical_map [L, P], logical_to_physical_map [L, E, most], logical_count [L, E]."""
    weight = weight.float().cpu()
    if groups % nodes:
        groups, nodes = 1, 1
    new_map, replica, counts = rebalance_experts_hierarchical(weight, slots, groups, nodes, gpus)
    layers, experts = weight.shape
    most = int(counts.max())
    slots_of = torch.full((layers, experts * most), -1, dtype=torch.int64)
    slots_of.scatter_(1, new_map * most + replica, torch.arange(slots).expand(layers, -1))
    return new_map, slots_of.view(layers, experts, most), counts


def rebalance_experts_hierarchical(
    weight: Tensor, slots: int, groups: int, nodes: int, gpus: int
) -> tuple[Tensor, Tensor, Tensor]:
    layers, experts = weight.shape
    size, node_experts = experts // groups, experts // nodes

    group_load = weight.unflatten(-1, (groups, size)).sum(-1)
    node, position = balanced_packing(group_load, nodes)
    first = (node * (groups // nodes) + position) * size
    place_of = (first.unsqueeze(-1) + torch.arange(size)).flatten(-2)
    ordered = inverse(place_of)

    node_load = weight.gather(1, ordered).view(-1, node_experts)
    expert_of, replica_of, counts = replicate_experts(node_load, slots // nodes)

    share = (node_load / counts).gather(1, expert_of)
    gpu, position = balanced_packing(share, gpus // nodes)
    chosen = inverse(gpu * (slots // gpus) + position)

    places = expert_of.gather(1, chosen).view(layers, nodes, -1) + torch.arange(0, experts, node_experts).view(1, -1, 1)
    new_map = ordered.gather(1, places.flatten(-2))
    return new_map, replica_of.gather(1, chosen).view(layers, -1), counts.view(layers, -1).gather(1, place_of)


def balanced_packing(weight: Tensor, packs: int) -> tuple[Tensor, Tensor]:
    rows, items = weight.shape
    room = items // packs
    if room == 1:
        return torch.arange(items).expand(rows, items), torch.zeros(rows, items, dtype=torch.int64)
    order = weight.float().sort(-1, descending=True).indices
    pack_of = torch.full((rows, items), -1)
    position_of = torch.full((rows, items), -1)
    for row in range(rows):
        load: list[float | Tensor] = [0] * packs
        filled = [0] * packs
        for item in order[row]:
            open_packs = (pack for pack in range(packs) if filled[pack] < room)
            lightest = min(open_packs, key=load.__getitem__)
            pack_of[row, item] = lightest
            position_of[row, item] = filled[lightest]
            load[lightest] = load[lightest] + weight[row, item]
            filled[lightest] += 1
    return pack_of, position_of


def replicate_experts(weight: Tensor, slots: int) -> tuple[Tensor, Tensor, Tensor]:
    rows, experts = weight.shape
    expert_of = torch.arange(slots).repeat(rows, 1)
    replica_of = torch.zeros(rows, slots, dtype=torch.int64)
    counts = torch.ones(rows, experts, dtype=torch.int64)
    row = torch.arange(rows)
    for slot in range(experts, slots):
        heaviest = (weight / counts).max(dim=-1).indices
        expert_of[:, slot] = heaviest
        replica_of[:, slot] = counts[row, heaviest]
        counts[row, heaviest] += 1
    return expert_of, replica_of, counts


def inverse(permutation: Tensor) -> Tensor:
    found = torch.empty_like(permutation)
    found.scatter_(1, permutation, torch.arange(permutation.shape[1]).expand(permutation.shape))
    return found
