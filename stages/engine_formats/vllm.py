"""vLLM, as proposed for saving and loading placements (read from 0.33): JSON lines, one record a line.

`eplb_initial_mapping` assigns an expert to each slot of each MoE layer, counted from 0 without the dense ones, -1 for
an empty slot. `eplb_load_stats` has the map that was in place beside the loads.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stages import paths
from stages.engine_formats.stored import Outgoing, Stored, as_rows
from stages.errors import BadInput

MAPPING, LOADS = "eplb_initial_mapping", "eplb_load_stats"
VERSION = 1


def write(path: Path, outgoing: Outgoing) -> None:
    slots = outgoing.map.shape[1]
    record = {
        "record_type": MAPPING,
        "version": VERSION,
        "num_redundant_experts": slots - outgoing.experts,
        "num_slots": slots,
        "initial_global_assignments": {str(layer): row for layer, row in enumerate(outgoing.map.tolist())},
    }
    paths.write_text(path, json.dumps(record) + "\n")


def read(path: Path) -> Stored:
    """The last map that the file has."""
    found: Stored | None = None
    for number, record in records(path):
        if record["record_type"] == MAPPING:
            found = _mapping(path, number, record)
        elif record["record_type"] == LOADS and "p2l_map" in record:
            found = Stored(as_rows(path, f"line {number}: p2l_map", record["p2l_map"]), ranks=record.get("num_ranks"))
    if found is None:
        raise BadInput(f"{path} has no record of type {MAPPING}, nor one of {LOADS} with a p2l_map.")
    return found


def records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number (from 1) and content of each line that is not empty."""
    with path.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:
                cut = " It may be cut off: the line has no end." if not line.endswith("\n") else ""
                raise BadInput(f"{path}: line {number} is no JSON ({error}).{cut}") from error
            if not isinstance(record, dict) or not isinstance(record.get("record_type"), str):
                raise BadInput(f"{path}: line {number} is no object with a record_type.")
            if record["record_type"] in (MAPPING, LOADS) and record.get("version") != VERSION:
                raise BadInput(f"{path}: line {number} is of version {record.get('version')}; only {VERSION} is known.")
            yield number, record


def _mapping(path: Path, number: int, record: dict[str, Any]) -> Stored:
    name = f"line {number}: initial_global_assignments"
    layers = record.get("initial_global_assignments")
    if not isinstance(layers, dict) or not layers:
        raise BadInput(f"{path}: {name} is no object of layers.")
    absent = [n for n in range(len(layers)) if str(n) not in layers]
    if absent:
        raise BadInput(f"{path}: {name} has {len(layers)} layers, but not layer {absent[0]}: they count from 0.")
    rows = as_rows(path, name, [layers[str(n)] for n in range(len(layers))])
    slots, redundant = record.get("num_slots"), record.get("num_redundant_experts")
    if slots != rows.shape[1]:
        raise BadInput(f"{path}: line {number} has num_slots={slots}, but {rows.shape[1]} slots a layer.")
    return Stored(rows, experts=slots - redundant if isinstance(redundant, int) else None)
