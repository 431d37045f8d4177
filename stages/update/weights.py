"""The slots of one rank: allocated on its device, filled, and hashed."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch

from stages import synthetic
from stages.checksum import checksum_rows
from stages.expert_map import EMPTY, ExpertMap
from stages.model import TensorSpec
from stages.update.config import UpdateStageConfig
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


def fill(weights: Weights, config: UpdateStageConfig, own: ExpertMap) -> None:
    """Write the experts `own` `[L, slots_per_rank]` from where the weights come from; empty slots become zero."""
    if config.weight_source is None:
        fill_synthetic(weights, config.seed, own)
    else:
        fill_from(weights, config.weight_source, own)


def fill_synthetic(weights: Weights, seed: int, own: ExpertMap) -> None:
    """Write the synthetic content of the experts `own` `[L, slots_per_rank]`; empty slots become zero."""
    for layer, tensors in enumerate(weights):
        experts = own[layer]
        empty = np.flatnonzero(experts == EMPTY)
        layers = np.full(len(experts), layer, dtype=np.int64)
        for k, tensor in enumerate(tensors):
            synthetic.fill(tensor, seed, layers, np.maximum(experts, 0), k)
            for slot in empty:
                tensor[slot].view(torch.uint8).zero_()


def fill_from(weights: Weights, source: ExpertSource, own: ExpertMap) -> None:
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

    with ThreadPoolExecutor(READERS) as pool:
        list(pool.map(fill_slot, np.ndindex(own.shape)))


def checksums(weights: Weights) -> npt.NDArray[np.uint64]:
    """[L, slots_per_rank, K]: the checksum of what is in memory now."""
    return np.stack([np.stack([checksum_rows(tensor) for tensor in tensors], axis=1) for tensors in weights])


def nbytes(tensors: Sequence[torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
