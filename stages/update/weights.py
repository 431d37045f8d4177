"""The slots of one rank: allocated on its device, filled, and hashed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch

from stages import synthetic
from stages.checksum import checksum_tensors
from stages.errors import Corruption
from stages.expert_map import EMPTY, ExpertMap
from stages.model import TensorSpec
from stages.update.config import UpdateStageConfig
from stages.weight_shards import ShardSource
from stages.weight_source import ExpertSource, copy_into

Weights = list[list[torch.Tensor]]
"""[L][K]: tensor k of all slots of a rank in a layer, `[slots_per_rank, *shape]`."""

READERS = 4
"""Threads a rank that read files at once."""


def allocate(specs: Sequence[TensorSpec], layers: int, slots_per_rank: int, device: torch.device) -> Weights:
    return [
        [torch.empty((slots_per_rank, *spec.shape), dtype=getattr(torch, spec.dtype), device=device) for spec in specs]
        for _ in range(layers)
    ]


def fill(
    weights: Weights, config: UpdateStageConfig, own: ExpertMap, filled: Callable[[int], None] = lambda layers: None
) -> None:
    """Write the experts `own` `[L, slots_per_rank]` from where the weights come from; empty slots become zero. `filled`
    is told how many layers are."""
    if config.weight_source is None:
        fill_synthetic(weights, config.seed, own, filled)
    else:
        fill_from(weights, config.weight_source, own, filled)


def fill_synthetic(weights: Weights, seed: int, own: ExpertMap, filled: Callable[[int], None]) -> None:
    """Write the synthetic content of the experts `own` `[L, slots_per_rank]`; empty slots become zero."""
    for layer, tensors in enumerate(weights):
        experts = own[layer]
        empty = np.flatnonzero(experts == EMPTY)
        layers = np.full(len(experts), layer, dtype=np.int64)
        for k, tensor in enumerate(tensors):
            synthetic.fill(tensor, seed, layers, np.maximum(experts, 0), k)
            for slot in empty:
                tensor[slot].view(torch.uint8).zero_()
        filled(layer + 1)


def fill_from(weights: Weights, source: ExpertSource, own: ExpertMap, filled: Callable[[int], None]) -> None:
    """Write the experts `own` `[L, slots_per_rank]` as `source` has them; empty slots become zero.

    A few threads read at once: a mapped file is read where it is touched, and one thread would wait for each page.
    """

    def fill_slot(place: tuple[int, int]) -> None:
        layer, slot = place
        expert = int(own[layer, slot])
        for k, tensor in enumerate(weights[layer]):
            if expert == EMPTY:
                tensor[slot].view(torch.uint8).zero_()
            else:
                copy_into(tensor[slot], source.pieces(layer, expert, k))

    device = weights[0][0].device
    at_start = (torch.cuda.set_device, (device,)) if device.type == "cuda" else (None, ())
    with ThreadPoolExecutor(READERS, "reader", *at_start) as pool:
        for slots, _ in enumerate(pool.map(fill_slot, np.ndindex(own.shape)), 1):
            if slots % own.shape[1] == 0:
                filled(slots // own.shape[1])


def fill_slots(weights: Weights, config: UpdateStageConfig, own: ExpertMap) -> None:
    """Write the experts `own` `[L, slots_per_rank]` from where the weights come from; empty slots stay as they are."""
    for layer, slot in np.argwhere(own != EMPTY).tolist():
        targets = [tensor[slot].view(-1).view(torch.uint8) for tensor in weights[layer]]
        fill_expert(targets, config, layer, int(own[layer, slot]))


def fill_expert(targets: Sequence[torch.Tensor], config: UpdateStageConfig, layer: int, expert: int) -> None:
    """Write one expert, tensor by tensor, from where the weights come from into `targets`: bytes, contiguous."""
    for k, target in enumerate(targets):
        if config.weight_source is None:
            synthetic.fill(target[None], config.seed, np.array([layer]), np.array([expert]), k)
        else:
            spec = config.model.tensors[k]
            pieces = config.weight_source.pieces(layer, expert, k)
            copy_into(target.view(getattr(torch, spec.dtype)).view(spec.shape), pieces)


def check_filled(config: UpdateStageConfig, own: ExpertMap, found: npt.NDArray[np.uint64]) -> None:
    """Raise `Corruption` where a slot does not hold what its shard was saved with; `found`: `[L, slots_per_rank, K]`."""
    source = config.weight_source
    if not isinstance(source, ShardSource):
        return
    for layer, slot in np.argwhere(own != EMPTY).tolist():
        expert = int(own[layer, slot])
        wrong = np.flatnonzero(source.recorded(layer, expert) != found[layer, slot])
        if len(wrong):
            raise Corruption(
                f"{source.title}: tensor {source.specs[wrong[0]].name} of expert {expert} in layer {layer} is not what "
                "was saved there."
            )


def checksums(weights: Weights) -> npt.NDArray[np.uint64]:
    """[L, slots_per_rank, K]: the checksum of what is in memory now."""
    found = checksum_tensors([tensor for tensors in weights for tensor in tensors])
    kinds = len(weights[0])
    return np.stack([np.stack(found[first : first + kinds], axis=1) for first in range(0, len(found), kinds)])


def nbytes(tensors: Sequence[torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
