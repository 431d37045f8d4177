"""What a window takes under a placement, and what it takes to move to another one.

A window of N tokens takes N / tokens_per_second where every GPU has the same to do. Of that, `moe_time_fraction` is
governed by experts: in each layer all GPUs wait for the fullest, so that it grows by max / mean GPU load, and layers
follow each other, so that their growth is averaged:

    seconds = N / tokens_per_second * (1 - fraction + fraction * mean over layers of (max / mean))
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stages.balance import balancedness_per_layer, gpu_load
from stages.direct import direct_transfers
from stages.expert_map import ExpertMap
from stages.topology import Topology

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Speed:
    """`tokens_per_second` where all GPUs have the same to do, the share of a step that expert balance governs, and how
    many experts a token goes to (1 where that is not known)."""

    tokens_per_second: float
    moe_time_fraction: float
    top_k: int

    def window_seconds(self, load: Floats, expert_map: ExpertMap, ranks: int) -> float:
        """Of a window with `load` [L, E] tokens of each expert, in the slots of `expert_map` [L, P]."""
        tokens = float(load.sum(axis=1).mean()) / self.top_k
        stretch = float((1 / balancedness_per_layer(gpu_load(load, expert_map, ranks))).mean())
        return tokens / self.tokens_per_second * (1 + self.moe_time_fraction * (stretch - 1))


@dataclass(frozen=True)
class Move:
    """From one placement to the next: what it brings, and how long that takes."""

    slots: int
    moved_bytes: int
    seconds: float


def move(old: ExpertMap, new: ExpertMap, topology: Topology, expert_bytes: int, tensors: int) -> Move:
    """The move by direct transfers, each expert being `tensors` messages.

    It takes as long as the links of the busiest GPU in its busier direction: within its node and to other nodes, one
    after the other.
    """
    plan = direct_transfers(old, new, topology.ranks, topology.gpus_per_node, expert_bytes)
    plan = plan.select(plan.network)
    node = topology.node_of_rank()
    cross = node[plan.src_rank] != node[plan.dst_rank]
    longest = 0.0
    for end in (plan.src_rank, plan.dst_rank):
        seconds = np.zeros(topology.ranks)
        for link, over in ((topology.links.within_node, ~cross), (topology.links.between_nodes, cross)):
            experts = np.bincount(end[over], minlength=topology.ranks)
            seconds += [link.seconds(float(n * expert_bytes), float(n * tensors)) for n in experts]
        longest = max(longest, float(seconds.max()))
    return Move(len(plan), int(plan.bytes.sum()), longest)
