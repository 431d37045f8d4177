"""The config of the place stage."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.errors import BadInput
from stages.model import ModelSpec
from stages.topology import Topology

ALGORITHMS = ("contiguous", "eplb", "file")
CONTIGUOUS, LOADS = "contiguous", "loads"


@dataclass
class PlaceOptions:
    """`algorithm` decides which expert each slot holds; `current` says which it holds now.

    `path`: the placement, for `file`. `redundant_experts`: slots a layer beyond its experts, rounded up so that slots
    divide over the ranks; a file brings its own. `current`: `contiguous` (slot s holds expert s mod E), `loads` (the
    map that came with the loads), or a placement file.
    """

    algorithm: str = "eplb"
    path: str | None = None
    redundant_experts: int = 0
    current: str = CONTIGUOUS

    def __post_init__(self) -> None:
        if self.algorithm not in ALGORITHMS:
            raise BadInput(f"place.algorithm={self.algorithm} is not known; allowed are {', '.join(ALGORITHMS)}.")
        if self.algorithm == "file" and not self.path:
            raise BadInput("place.algorithm=file needs place.path: a placement file (.json, .safetensors, .npy, .npz).")
        if self.redundant_experts < 0:
            raise BadInput(f"place.redundant_experts={self.redundant_experts} must not be negative.")
        if not self.current:
            raise BadInput("place.current is empty; allowed are contiguous, loads and the name of a placement file.")

    @property
    def current_file(self) -> str | None:
        """The file that holds the current placement, if one does."""
        return None if self.current in (CONTIGUOUS, LOADS) else self.current


@dataclass
class PlaceStageConfig:
    """What the place stage is given."""

    place: PlaceOptions
    model: ModelSpec
    topology: Topology

    def key_config(self) -> dict[str, Any]:
        """Layers and experts come with the loads, files count by their content, and links and tensors do not matter."""
        place: dict[str, Any] = {
            "algorithm": self.place.algorithm,
            "current": "file" if self.place.current_file else self.place.current,
        }
        if self.place.algorithm != "file":
            place["redundant_experts"] = self.place.redundant_experts
        topology = {"nodes": self.topology.nodes, "gpus_per_node": self.topology.gpus_per_node}
        key: dict[str, Any] = {"place": place, "topology": topology}
        if self.place.algorithm == "eplb":
            key["model"] = {"num_groups": self.model.num_groups}
        return key

    def external_files(self) -> dict[str, Path]:
        files: dict[str, Path] = {}
        if self.place.algorithm == "file" and self.place.path:
            files["place.path"] = Path(self.place.path)
        if self.place.current_file:
            files["place.current"] = Path(self.place.current_file)
        return files
