"""What the place stage is given, and what of it can change its result."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.model import ModelSpec
from stages.solvers.keys import key_of
from stages.solvers.options import ALGORITHMS, CONTIGUOUS, LOADS, PlaceOptions
from stages.topology import Topology

__all__ = ["ALGORITHMS", "CONTIGUOUS", "LOADS", "PlaceOptions", "PlaceStageConfig"]


@dataclass
class PlaceStageConfig:
    """The options, the model, the topology, and the seed of what `local_search` leaves to chance."""

    place: PlaceOptions
    model: ModelSpec
    topology: Topology
    seed: int = 0

    def key_config(self) -> dict[str, Any]:
        return key_of(self.place, self.model, self.topology, self.seed)

    def external_files(self) -> dict[str, Path]:
        return self.place.files
