"""What a search is given."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stages.expert_map import ExpertMap
from stages.topology import Topology

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Problem:
    """`load` [L, E] for `capacity` [L, R] slots of each rank, from `current` [L, P]; `num_groups` expert groups."""

    load: Floats
    capacity: Ints
    current: ExpertMap
    topology: Topology
    num_groups: int
    expert_bytes: int

    @property
    def experts(self) -> int:
        return self.load.shape[1]

    @property
    def mean(self) -> Floats:
        """[L]: the mean GPU load."""
        return self.load.sum(axis=1) / self.topology.ranks
