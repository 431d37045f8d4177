"""What the place stage is given, and what of it can change its result."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.model import ModelSpec
from stages.solvers.movement import cross_node_factor
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
        """Layers and experts come with the loads, files count by their content, and of an expert only its bytes."""
        options = self.place
        place: dict[str, Any] = {"algorithm": options.algorithm, "current": options.current_name}
        if options.algorithm != "file":
            place["redundant_experts"] = options.redundant_experts
        place |= options.load_rule if options.algorithm in ("eplb", "local_search") else {}
        place |= {"min_gain": options.min_gain} if options.min_gain else {}
        if options.resizes:
            place |= {"ranks": options.ranks, "current_ranks": options.current_ranks, "lost": options.lost_ranks}
        topology: dict[str, Any] = {"nodes": self.topology.nodes, "gpus_per_node": self.topology.gpus_per_node}
        if options.relabels:
            place["relabel"] = True
        if options.relabels or options.restrained:
            topology["cross_node_factor"] = cross_node_factor(self.topology)
        key: dict[str, Any] = {"place": place, "topology": topology}
        if options.algorithm == "eplb":
            key["model"] = {"num_groups": self.model.num_groups}
        if options.algorithm == "local_search":
            place |= options.search
            key["model"] = {"expert_bytes": self.model.expert_bytes}
            if options.locality != "none":
                key["model"]["num_groups"] = self.model.num_groups
            key["seed"] = self.seed
        return key

    def external_files(self) -> dict[str, Path]:
        files: dict[str, Path] = {}
        if self.place.algorithm == "file" and self.place.path:
            files["place.path"] = Path(self.place.path)
        if self.place.current_file:
            files["place.current"] = Path(self.place.current_file)
        return files
