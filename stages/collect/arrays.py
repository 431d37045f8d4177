"""Readers of files that hold arrays: npz, npy, safetensors and JSON. Nothing is ever unpickled."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt

from stages.collect.dump import Dump
from stages.collect.words import listed
from stages.errors import BadInput

COUNT = "logical_count"
MAP = "physical_to_logical_map"
LABELS = ("label", "labels")


def read_npz(path: Path) -> Dump:
    """`logical_count`, and if they are there `physical_to_logical_map` and `label` (or `labels`)."""
    loaded = np.load(path, allow_pickle=False)
    if not isinstance(loaded, np.lib.npyio.NpzFile):
        raise BadInput(f"{path} is no .npz file but a single array; give it the ending .npy.")
    with loaded as file:
        _needs_count(path, list(file.files))
        labels = next((file[name] for name in LABELS if name in file.files), None)
        current = file[MAP] if MAP in file.files else None
        return Dump(str(path), file[COUNT], _texts(labels), current)


def read_npy(path: Path) -> Dump:
    """The array itself is `logical_count`."""
    count = np.load(path, allow_pickle=False)
    if not isinstance(count, np.ndarray):
        raise BadInput(f"{path} is no .npy file but an archive of arrays; give it the ending .npz.")
    return Dump(str(path), count)


def read_safetensors(path: Path) -> Dump:
    """`logical_count`, `physical_to_logical_map` if it is there, and the labels that a `load.safetensors` has."""
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        names = set(file.keys())
        _needs_count(path, sorted(names))
        labels = json.loads((file.metadata() or {}).get("moesaic", "{}")).get("labels", [])
        current = file.get_tensor(MAP) if MAP in names else None
        return Dump(str(path), file.get_tensor(COUNT), tuple(map(str, labels)), current)


def read_json(path: Path) -> Dump:
    """`{"logical_count": …}` with what an npz file may have besides, a bare nested list, or the load history of
    ADRS: `{"load_history": [{"logical_expert_load": [L][E]}, …]}`."""
    value = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(value, list):
        return Dump(str(path), _array(path, COUNT, value))
    if isinstance(value, dict) and isinstance(value.get("load_history"), list):
        steps = [step["logical_expert_load"] for step in value["load_history"]]
        return Dump(str(path), _array(path, "load_history", steps))
    if not isinstance(value, dict):
        raise BadInput(f"{path} holds neither an object with {COUNT} nor a nested list of counts.")
    _needs_count(path, list(value))
    labels: list[object] = next((value[name] for name in LABELS if name in value), [])
    current = _array(path, MAP, value[MAP]) if MAP in value else None
    return Dump(str(path), _array(path, COUNT, value[COUNT]), tuple(map(str, labels)), current)


def _texts(labels: npt.NDArray[np.generic] | None) -> tuple[str, ...]:
    return () if labels is None else tuple(map(str, labels.ravel().tolist()))


def _needs_count(path: Path, names: list[str]) -> None:
    if COUNT not in names:
        raise BadInput(f"{path} has no {COUNT}, only {listed(names) or 'nothing at all'}.")


def _array(path: Path, name: str, nested: object) -> npt.NDArray[np.generic]:
    """Nested lists of equal lengths as an array, of objects where they hold anything but numbers."""
    try:
        array = np.array(nested)
    except ValueError:
        raise BadInput(f"{path}: {name} is not rectangular: {_uneven(nested)}.") from None
    return array if array.dtype.kind in "iuf" else np.array(nested, dtype=object)


def _uneven(nested: object) -> str:
    """Where lists of one level differ in length, in words."""
    depth, item = 0, nested
    while isinstance(item, list) and item:
        depth, item = depth + 1, item[0]
    words = iter(("row", "layer", "expert")[-depth:] if depth <= 3 else ())
    level: list[tuple[str, object]] = [("the whole", nested)]
    while True:
        sizes = [len(item) if isinstance(item, list) else None for _, item in level]
        odd = next((n for n, size in enumerate(sizes) if size != sizes[0]), None)
        if odd is not None:
            return f"{level[0][0]} has {_size(sizes[0])}, but {level[odd][0]} has {_size(sizes[odd])}"
        word = next(words, "entry")
        level = [
            (f"{where}, {word} {n}".removeprefix("the whole, "), part)
            for where, item in level
            if isinstance(item, list)
            for n, part in enumerate(item)
        ]


def _size(size: int | None) -> str:
    return "no list" if size is None else f"{size} entries"
