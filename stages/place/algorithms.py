"""The algorithms by name. Each is made into a solver: loads in, map out."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from stages.errors import BadInput
from stages.expert_map import ExpertMap, contiguous_map, slots_for
from stages.load import LoadStats
from stages.place.config import PlaceStageConfig
from stages.place.maps import placement_file

Solver = Callable[[npt.NDArray[np.int64]], ExpertMap]
"""From the tokens of each expert, `[L, E]`, to a map `[L, P]`."""


def solver_of(config: PlaceStageConfig, load: LoadStats) -> tuple[Solver, int]:
    """The solver that `place.algorithm` names, and P, the slots a layer of its maps."""
    ranks = config.topology.ranks
    if config.place.algorithm == "file":
        given = placement_file(config.place, load, ranks)
        return (lambda _: given), given.shape[1]
    slots = slots_for(load.experts, config.place.redundant_experts, ranks)
    if config.place.algorithm == "contiguous":
        return (lambda _: contiguous_map(load.layers, load.experts, slots)), slots
    groups, nodes = config.model.num_groups, config.topology.nodes
    if is_hierarchical(config) and load.experts % groups:
        raise BadInput(f"model.num_groups={groups} does not divide the {load.experts} experts of the loads evenly.")
    from stages.place.eplb import rebalance_experts  # imports torch, which is no part of the time to solve

    def eplb(counts: npt.NDArray[np.int64]) -> ExpertMap:
        return rebalance_experts(counts, slots, groups, nodes, ranks).physical_to_logical_map

    return eplb, slots


def is_hierarchical(config: PlaceStageConfig) -> bool:
    """Whether `eplb` keeps each group of experts on one node: exactly when the groups divide over the nodes."""
    return config.model.num_groups % config.topology.nodes == 0
