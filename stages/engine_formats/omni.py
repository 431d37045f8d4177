"""omni-infer: `.npy` [devices, L, E] of 0 and 1, one where a device holds an expert.

It says which experts a device holds, not in which of its slots: they are taken in ascending order, and a device with
fewer than the fullest one has empty slots after them. The same expert twice on a device cannot be said.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stages import paths
from stages.engine_formats.stored import Outgoing, Stored
from stages.errors import BadInput
from stages.expert_map import EMPTY, ExpertMap, counts_per_rank

ARRAY = "placement"


def write(path: Path, outgoing: Outgoing) -> None:
    held = counts_per_rank(outgoing.map, outgoing.experts, outgoing.ranks)
    twice = np.argwhere(held > 1)
    if len(twice):
        layer, rank, expert = twice[0]
        raise BadInput(
            f"omni-infer cannot hold an expert twice on one device, and layer {layer} of this placement "
            f"has expert {expert} in {held[layer, rank, expert]} slots of rank {rank}."
        )
    with paths.atomic(path) as temporary, temporary.open("wb") as stream:
        np.save(stream, held.transpose(1, 0, 2).astype(np.int64))


def read(path: Path) -> Stored:
    found = np.load(path, allow_pickle=False)
    if isinstance(found, np.lib.npyio.NpzFile):
        with found as file:
            if ARRAY not in file.files:
                raise BadInput(f"{path} has no array {ARRAY}, only {', '.join(file.files) or 'nothing at all'}.")
            found = file[ARRAY]
    return of_array(path, found)


def of_array(path: Path, held: npt.NDArray[Any]) -> Stored:
    if held.ndim != 3 or not held.size or held.dtype.kind not in "iubf" or not ((held == 0) | (held == 1)).all():
        raise BadInput(
            f"{path} is {held.dtype} of shape {list(held.shape)}; 0 and 1 of shape [devices, layers, experts] are needed."
        )
    return Stored(slots_of(held.astype(bool)), ranks=held.shape[0], experts=held.shape[2])


def slots_of(held: npt.NDArray[np.bool_]) -> ExpertMap:
    """[L, P] of [devices, L, E]: each device's experts in ascending order, then its empty slots."""
    devices, layers, _ = held.shape
    per_device = int(held.sum(axis=2).max())
    slots = np.full((layers, devices, per_device), EMPTY, dtype=np.int64)
    device, layer, expert = np.nonzero(held)
    place = (np.cumsum(held, axis=2) - 1)[device, layer, expert]
    slots[layer, device, place] = expert
    return slots.reshape(layers, devices * per_device)
