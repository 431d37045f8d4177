"""SGLang 0.5, `--init-expert-location FILE.json|FILE.pt`: `{"physical_to_logical_map": [hidden layers][P]}`.

One row a hidden layer, dense ones included; any other key is an error there, and so is an empty slot.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stages import paths
from stages.engine_formats.stored import Outgoing, Stored, as_rows
from stages.errors import BadInput
from stages.untrusted import load_tensors

KEY = "physical_to_logical_map"


def write(path: Path, outgoing: Outgoing) -> None:
    outgoing.refuse_empty_slots("SGLang")
    rows = outgoing.with_dense_rows()
    if path.suffix.lower() != ".pt":
        paths.write_text(path, json.dumps({KEY: rows.tolist()}) + "\n")
        return
    import torch

    with paths.atomic(path) as temporary:
        torch.save({KEY: torch.from_numpy(rows)}, temporary)


def read(path: Path) -> Stored:
    return of_value(path, load_tensors(path) if path.suffix.lower() == ".pt" else _json(path))


def of_value(path: Path, value: Any) -> Stored:
    """The map in what a file held: alone as SGLang wants it, or beside loads."""
    if not isinstance(value, dict) or KEY not in value:
        raise BadInput(f"{path} has no {KEY}.")
    rows = value[KEY]
    return Stored(as_rows(path, KEY, rows.numpy() if hasattr(rows, "numpy") else rows))


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
