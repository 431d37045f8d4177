"""Weights whose every byte follows from (seed, layer, logical expert, tensor, element), the same on CPU and GPU.

Any slot can so be checked against the truth alone, without another copy. The 64-bit word i of a tensor is
x ^ (x >> 29) with x = h * (2i + 1) mod 2^64, and h an odd hash of (seed, layer, expert, tensor).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from stages.checksum import checksum_rows, splitmix64
from stages.model import TensorSpec

if TYPE_CHECKING:
    import torch

ROWS_AT_ONCE_BYTES = 64 << 20


def fill(
    rows: torch.Tensor, seed: int, layers: npt.NDArray[np.int64], experts: npt.NDArray[np.int64], tensor: int
) -> None:
    """Write the content of tensor number `tensor` of `experts[n]` in `layers[n]` into `rows[n]` (`[N, …]`)."""
    import torch

    data = rows.view(rows.shape[0], -1).view(torch.uint8)
    nbytes = data.shape[1]
    words = -(-nbytes // 8)
    odd = torch.arange(words, dtype=torch.int64, device=data.device).mul_(2).add_(1)
    hashes = torch.from_numpy(_hashes(seed, layers, experts, tensor).view(np.int64)).to(data.device)
    low = (1 << 35) - 1
    for row in range(rows.shape[0]):
        word = odd * hashes[row]
        word ^= (word >> 29) & low
        data[row] = word.view(torch.uint8)[:nbytes]


def truth(
    specs: list[TensorSpec],
    seed: int,
    layers: npt.NDArray[np.int64],
    experts: npt.NDArray[np.int64],
    device: str = "cpu",
) -> npt.NDArray[np.uint64]:
    """[N, tensors]: the checksum that each tensor of `experts[n]` in `layers[n]` must have."""
    import torch

    out = np.empty((len(layers), len(specs)), dtype=np.uint64)
    for k, spec in enumerate(specs):
        at_once = max(1, ROWS_AT_ONCE_BYTES // spec.nbytes)
        buffer = torch.empty((min(at_once, len(layers)), spec.nbytes), dtype=torch.uint8, device=device)
        for start in range(0, len(layers), at_once):
            rows = slice(start, min(len(layers), start + at_once))
            part = buffer[: rows.stop - rows.start]
            fill(part, seed, layers[rows], experts[rows], k)
            out[rows, k] = checksum_rows(part)
    return out


def _hashes(
    seed: int, layers: npt.NDArray[np.int64], experts: npt.NDArray[np.int64], tensor: int
) -> npt.NDArray[np.uint64]:
    start = splitmix64(np.array([seed], dtype=np.int64).view(np.uint64))
    mixed = splitmix64(start ^ layers.astype(np.uint64))
    mixed = splitmix64(mixed ^ experts.astype(np.uint64))
    return splitmix64(mixed ^ np.uint64(tensor)) | np.uint64(1)
