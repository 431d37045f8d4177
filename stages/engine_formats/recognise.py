"""Reading a placement file of any engine, or a plain one, by its ending and its content."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from stages.engine_formats import ascend, omni, sglang, trtllm, vllm
from stages.engine_formats.stored import Stored, as_rows
from stages.errors import BadInput

ENDINGS = (".json", ".pt", ".jsonl", ".yaml", ".yml", ".npy", ".npz", ".safetensors")


def read_stored(path: Path, name: str) -> Stored:
    """The placement in `path`; `name` is the config key that asked for it. Raises `BadInput` where there is none."""
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        raise BadInput(f"{name}={path} is no placement file; allowed are {', '.join(ENDINGS)}.")
    if not path.is_file():
        raise BadInput(f"{name}={path} does not exist.")
    try:
        return _read(path, ending)
    except BadInput:
        raise
    except Exception as error:  # whatever a parser raises on broken bytes
        text = str(error).strip().splitlines()
        raise BadInput(
            f"{name}={path} cannot be read: {type(error).__name__}{f': {text[0]}' if text else ''}."
        ) from error


def _read(path: Path, ending: str) -> Stored:
    if ending == ".pt":
        return sglang.read(path)
    if ending == ".jsonl":
        return vllm.read(path)
    if ending in (".yaml", ".yml"):
        return trtllm.read(path)
    if ending == ".json":
        return _json(path)
    if ending == ".safetensors":
        from safetensors import safe_open

        with safe_open(path, framework="numpy") as file:
            if sglang.KEY not in set(file.keys()):
                raise BadInput(f"{path} has no {sglang.KEY}.")
            return Stored(as_rows(path, sglang.KEY, file.get_tensor(sglang.KEY)))
    found = np.load(path, allow_pickle=False)
    if isinstance(found, np.lib.npyio.NpzFile):
        with found as file:
            if sglang.KEY in file.files:
                return Stored(as_rows(path, sglang.KEY, file[sglang.KEY]))
        return omni.read(path)
    return omni.of_array(path, found) if found.ndim == 3 else Stored(as_rows(path, "the array", found))


def _json(path: Path) -> Stored:
    """SGLang's or Ascend's, or a bare nested list."""
    value = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(value, list):
        return Stored(as_rows(path, "the list", value))
    if isinstance(value, dict) and "layer_list" in value:
        return ascend.of_value(path, value)
    return sglang.of_value(path, value)
