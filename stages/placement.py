"""The placement artifact: the map to reach, and the map that is in place."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stages import paths
from stages.expert_map import ExpertMap
from stages.resize import framed


@dataclass(frozen=True)
class Placement:
    """`physical_to_logical_map` (new) and `current` (old): int64 `[L, P]`; `experts`: E.

    `shape`: where the new map is smaller than the frame that both share (`stages.resize`), ranks of the frame, and the
    ranks and the slots a rank that the new map has.
    """

    physical_to_logical_map: ExpertMap
    current: ExpertMap
    experts: int
    shape: tuple[int, int, int] | None = None

    @property
    def deployed(self) -> ExpertMap:
        """The new map as engines are given it, without the frame."""
        if self.shape is None:
            return self.physical_to_logical_map
        frame, ranks, per_rank = self.shape
        return framed(self.physical_to_logical_map, frame, ranks, per_rank)

    def without_frame(self) -> Placement:
        """The new map alone, as engines are given it."""
        return Placement(self.deployed, self.deployed, self.experts) if self.shape is not None else self

    def slots_per_rank(self, ranks: int) -> int:
        """Of the new map, where the frame has `ranks` ranks."""
        return self.slots // ranks if self.shape is None else self.shape[2]

    @property
    def layers(self) -> int:
        return self.physical_to_logical_map.shape[0]

    @property
    def slots(self) -> int:
        return self.physical_to_logical_map.shape[1]


def write_placement(folder: Path, placement: Placement) -> tuple[str, ...]:
    from safetensors.numpy import save_file

    tensors = {
        "physical_to_logical_map": np.ascontiguousarray(placement.physical_to_logical_map),
        "current": np.ascontiguousarray(placement.current),
    }
    facts: dict[str, object] = {"experts": placement.experts}
    if placement.shape is not None:
        facts["shape"] = placement.shape
    with paths.atomic(folder / paths.PLACEMENT) as temporary:
        save_file(tensors, temporary, metadata={"moesaic": json.dumps(facts)})
    value = {"physical_to_logical_map": placement.deployed.tolist()}
    paths.write_text(folder / paths.PLACEMENT_JSON, json.dumps(value) + "\n")
    return paths.PLACEMENT, paths.PLACEMENT_JSON


def read_placement(path: Path) -> Placement:
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        facts = json.loads(file.metadata()["moesaic"])
        shape = tuple(facts["shape"]) if "shape" in facts else None
        maps = file.get_tensor("physical_to_logical_map"), file.get_tensor("current")
        return Placement(*maps, facts["experts"], shape)
