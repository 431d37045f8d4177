"""TensorRT-LLM, the YAML of its load balancer: `num_slots`, `layer_updates_per_iter` (0: static, more: it goes on balancing while it serves), and
`initial_global_assignments`, whose layers are numbered as the model's own, dense ones included (and left out)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stages import paths
from stages.engine_formats.stored import Outgoing, Stored, as_rows
from stages.errors import BadInput

ASSIGNMENTS = "initial_global_assignments"


def write(path: Path, outgoing: Outgoing) -> None:
    import yaml

    outgoing.refuse_empty_slots("TensorRT-LLM")
    layers, slots = outgoing.map.shape
    value = {
        "num_slots": slots,
        "layer_updates_per_iter": outgoing.layer_updates_per_iter,
        ASSIGNMENTS: dict(zip(outgoing.numbers.ids(layers), outgoing.map.tolist(), strict=True)),
    }
    paths.write_text(path, yaml.safe_dump(value, default_flow_style=None, sort_keys=False, width=1_000_000))


def read(path: Path) -> Stored:
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    value: Any = yaml.load(path.read_text(encoding="utf-8"), Loader=loader)
    layers = value.get(ASSIGNMENTS) if isinstance(value, dict) else None
    if not isinstance(layers, dict) or not layers:
        raise BadInput(f"{path} has no {ASSIGNMENTS} of layers.")
    ids = [int(layer) for layer in layers]
    rows = as_rows(path, ASSIGNMENTS, list(layers.values()))
    if value.get("num_slots") != rows.shape[1]:
        raise BadInput(f"{path} has num_slots={value.get('num_slots')}, but {rows.shape[1]} slots a layer.")
    return Stored(rows, tuple(ids))
