"""The placement artifact: the map to reach, and the map that is in place."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stages import paths
from stages.expert_map import ExpertMap


@dataclass(frozen=True)
class Placement:
    """`physical_to_logical_map` (new) and `current` (old): int64 `[L, P]`; `experts`: E."""

    physical_to_logical_map: ExpertMap
    current: ExpertMap
    experts: int

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
    with paths.atomic(folder / paths.PLACEMENT) as temporary:
        save_file(tensors, temporary, metadata={"moesaic": json.dumps({"experts": placement.experts})})
    value = {"physical_to_logical_map": placement.physical_to_logical_map.tolist()}
    paths.write_text(folder / paths.PLACEMENT_JSON, json.dumps(value) + "\n")
    return paths.PLACEMENT, paths.PLACEMENT_JSON


def read_placement(path: Path) -> Placement:
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        experts = json.loads(file.metadata()["moesaic"])["experts"]
        return Placement(file.get_tensor("physical_to_logical_map"), file.get_tensor("current"), experts)
