"""Placements in the formats that engines load. Layers are numbered as the engine does, dense ones included."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from stages import paths
from stages.errors import BadInput
from stages.expert_map import EMPTY, ExpertMap, contiguous_map
from stages.model import moe_layer_ids
from stages.placement import Placement


def with_dense_rows(placement: Placement, first_moe_layer: int, dense_layers: list[int]) -> ExpertMap:
    """`[hidden layers, P]`: the placement with a trivial row (slot s holds expert s mod E) for each dense layer."""
    ids = moe_layer_ids(placement.layers, first_moe_layer, dense_layers)
    rows = contiguous_map(max([*ids, *dense_layers]) + 1, placement.experts, placement.slots)
    rows[ids] = placement.physical_to_logical_map
    return rows


def write_sglang(path: Path, placement: Placement, *, first_moe_layer: int, dense_layers: list[int]) -> None:
    """SGLang's `--init-expert-location` file (0.5): one row a hidden layer, no other key."""
    empty = np.argwhere(placement.physical_to_logical_map == EMPTY)
    if len(empty):
        layer, slot = empty[0]
        raise BadInput(f"SGLang cannot hold empty slots, and layer {layer} slot {slot} of this placement is empty.")
    rows = with_dense_rows(placement, first_moe_layer, dense_layers)
    paths.write_text(path, json.dumps({"physical_to_logical_map": rows.tolist()}) + "\n")


WRITERS: dict[str, Callable[..., None]] = {"sglang": write_sglang}
