"""Strategies for hypothesis: pairs of maps that an update could be asked to bridge."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from stages.expert_map import EMPTY, ExpertMap


@dataclass(frozen=True)
class MapPair:
    """`old` and `new` `[L, P]` over `experts` logical experts; every expert is held in both."""

    old: ExpertMap
    new: ExpertMap
    experts: int
    ranks: int
    gpus_per_node: int


@st.composite
def map_pairs(draw: st.DrawFn, max_nodes: int = 4, max_gpus: int = 4, max_slots: int = 4) -> MapPair:
    """Random maps with replicas and empty slots; some layers stay as they are, some are pure permutations."""
    gpus_per_node, nodes = draw(st.integers(1, max_gpus)), draw(st.integers(1, max_nodes))
    ranks = gpus_per_node * nodes
    slots = ranks * draw(st.integers(1, max_slots))
    experts = draw(st.integers(1, slots))
    layers = draw(st.integers(1, 3))
    empty = draw(st.sampled_from([0.0, 0.3]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))

    def layer_map() -> ExpertMap:
        extra = rng.integers(0, experts, slots - experts)
        extra[rng.random(len(extra)) < empty] = EMPTY
        return rng.permutation(np.concatenate([np.arange(experts), extra]))

    old = np.stack([layer_map() for _ in range(layers)])
    new = np.stack([layer_map() for _ in range(layers)])
    change = rng.integers(0, 4, layers)
    new[change == 0] = old[change == 0]
    new[change == 1] = rng.permuted(old[change == 1], axis=1)
    return MapPair(old, new, experts, ranks, gpus_per_node)
