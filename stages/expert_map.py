"""Maps from slots to logical experts: int64 `[L, P]`, -1 for an empty slot; slot s is on rank s // slots_per_rank."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt

from stages.errors import BadInput

ExpertMap = npt.NDArray[np.int64]
EMPTY = -1
ENGINE_ENDINGS = (".pt", ".jsonl", ".yaml", ".yml")
"""Of placement files that only engines have."""


def contiguous_map(layers: int, experts: int, slots: int) -> ExpertMap:
    """[L, P]: slot s holds expert s mod E."""
    return np.tile(np.arange(slots, dtype=np.int64) % experts, (layers, 1))


def slots_for(experts: int, redundant_experts: int, ranks: int) -> int:
    """P: E + redundant experts, rounded up to a multiple of the ranks."""
    return -(-(experts + redundant_experts) // ranks) * ranks


def slots_per_rank(expert_map: ExpertMap, ranks: int) -> int:
    slots = expert_map.shape[-1]
    if slots % ranks:
        raise BadInput(f"{slots} slots do not divide evenly over {ranks} ranks.")
    return slots // ranks


def replica_counts(expert_map: ExpertMap, experts: int) -> npt.NDArray[np.int64]:
    """[L, E]: how many slots hold each logical expert."""
    layers = expert_map.shape[0]
    flat = (expert_map + 1) + np.arange(layers)[:, None] * (experts + 1)
    counts = np.bincount(flat.ravel(), minlength=layers * (experts + 1))
    return counts.reshape(layers, experts + 1)[:, 1:].astype(np.int64)


def counts_per_rank(expert_map: ExpertMap, experts: int, ranks: int) -> npt.NDArray[np.int64]:
    """[L, R, E]: how many slots of each rank hold each logical expert."""
    layers = expert_map.shape[0]
    per_rank = expert_map.reshape(layers * ranks, slots_per_rank(expert_map, ranks))
    return replica_counts(per_rank, experts).reshape(layers, ranks, experts)


def duplicate_replicas(expert_map: ExpertMap, experts: int, ranks: int) -> int:
    """Slots that hold an expert which an earlier slot of the same rank holds already."""
    return int(np.maximum(counts_per_rank(expert_map, experts, ranks) - 1, 0).sum())


def moved_slots(old: ExpertMap, new: ExpertMap, experts: int, ranks: int) -> int:
    """Experts that a rank needs in `new` and holds in none of its slots in `old`, once per rank, layer and expert."""
    held = counts_per_rank(old, experts, ranks) > 0
    needed = counts_per_rank(new, experts, ranks) > 0
    return int((needed & ~held).sum())


def check_map(expert_map: ExpertMap, experts: int, ranks: int, name: str, *, complete: bool = True) -> None:
    """Raise `BadInput` unless `expert_map` is an `[L, P]` map over `experts` and, if `complete`, holds every expert."""
    if expert_map.ndim != 2:
        raise BadInput(f"{name} has shape {list(expert_map.shape)}; a map of layers x slots was expected.")
    slots_per_rank(expert_map, ranks)
    wrong = (expert_map < EMPTY) | (expert_map >= experts)
    if wrong.any():
        layer, slot = np.argwhere(wrong)[0]
        raise BadInput(
            f"{name}: layer {layer} slot {slot} holds expert {expert_map[layer, slot]}; "
            f"allowed are 0 to {experts - 1}, and -1 for an empty slot."
        )
    if complete:
        missing = np.argwhere(replica_counts(expert_map, experts) == 0)
        if len(missing):
            layer, expert = missing[0]
            raise BadInput(f"{name}: layer {layer} holds expert {expert} in no slot.")


def read_map(path: Path, name: str) -> ExpertMap:
    """The `[L, P]` map in a JSON (`{"physical_to_logical_map": …}`), safetensors, npy or npz file, or in a file of any
    engine's format; `name` is the config key that asked for it."""
    if not path.is_file():
        raise BadInput(f"{name}={path} does not exist.")
    try:
        if path.suffix in ENGINE_ENDINGS:
            found = _of_engine(path, name)
        elif path.suffix == ".json":
            value = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(value, dict) and "layer_list" in value:
                return _of_engine(path, name)
            found = np.asarray(value["physical_to_logical_map"] if isinstance(value, dict) else value)
        elif path.suffix == ".safetensors":
            from safetensors.numpy import load_file

            found = load_file(path)["physical_to_logical_map"]
        elif path.suffix == ".npy":
            found = np.load(path, allow_pickle=False)
            if found.ndim == 3:
                return _of_engine(path, name)
        elif path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                if "placement" in file.files:
                    return _of_engine(path, name)
                found = file["physical_to_logical_map"]
        else:
            raise BadInput(f"{name}={path} is no placement file; allowed are .json, .safetensors, .npy and .npz.")
    except KeyError:
        raise BadInput(f"{name}={path} has no physical_to_logical_map.") from None
    except BadInput:
        raise
    except Exception as error:
        raise BadInput(f"{name}={path} cannot be read: {error}") from error
    if found.ndim != 2 or found.dtype.kind not in "iu":
        raise BadInput(
            f"{name}={path} holds a {found.dtype} array of shape {list(found.shape)}; "
            "whole numbers of shape [layers, slots] were expected."
        )
    return found.astype(np.int64)


def _of_engine(path: Path, name: str) -> ExpertMap:
    """The rows of the file as they are there, dense layers included where the engine has them."""
    from stages.engine_formats import read_stored

    return read_stored(path, name).rows
