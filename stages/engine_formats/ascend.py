"""vLLM-Ascend 0.23, `expert_map.json`: per MoE layer and device the experts of its slots.

Layers are read by position; an engine makes a rectangular tensor of it, so every device has as many slots as any other
and none is empty.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from stages import paths
from stages.engine_formats.stored import Outgoing, Stored
from stages.errors import BadInput


def write(path: Path, outgoing: Outgoing) -> None:
    outgoing.refuse_empty_slots("vLLM-Ascend")
    per_device = outgoing.map.reshape(len(outgoing.map), outgoing.ranks, -1).tolist()
    layers = [
        {
            "layer_id": layer,
            "device_count": outgoing.ranks,
            "device_list": [{"device_id": device, "device_expert": slots} for device, slots in enumerate(devices)],
        }
        for layer, devices in enumerate(per_device)
    ]
    paths.write_json(path, {"moe_layer_count": len(layers), "layer_list": layers})


def read(path: Path) -> Stored:
    return of_value(path, json.loads(path.read_text(encoding="utf-8")))


def of_value(path: Path, value: Any) -> Stored:
    try:
        layers = [[device["device_expert"] for device in layer["device_list"]] for layer in value["layer_list"]]
        count = value["moe_layer_count"]
    except (KeyError, TypeError) as error:
        raise BadInput(f"{path} is no expert_map.json of vLLM-Ascend: it lacks {error}.") from error
    if count != len(layers):
        raise BadInput(f"{path} has moe_layer_count={count}, but {len(layers)} layers in layer_list.")
    try:
        rows = np.array(layers)
    except ValueError:
        raise BadInput(f"{path}: devices or layers differ in their number of slots.") from None
    if rows.ndim != 3 or not rows.size or rows.dtype.kind not in "iu":
        raise BadInput(f"{path}: device_expert must be lists of whole numbers, as many on every device.")
    return Stored(rows.reshape(len(rows), -1).astype(np.int64), ranks=rows.shape[1])
