"""Weights whose every byte follows from (seed, layer, logical expert, tensor, element), the same on CPU and GPU.

Any slot can so be checked against the truth alone, without another copy. The 64-bit word i of a tensor is
x ^ (x >> 29) with x = h * (2i + 1) mod 2^64, and h an odd hash of (seed, layer, expert, tensor).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from stages.checksum import checksum_rows, splitmix64
from stages.model import TensorSpec

if TYPE_CHECKING:
    import torch

WORDS_AT_ONCE = {"cpu": 1 << 17, "cuda": 1 << 23}
"""64-bit words made at once: what stays in a CPU's cache, and what keeps a GPU busy."""
TRUTH_BYTES_AT_ONCE = {"cpu": 1 << 23, "cuda": 1 << 28}
LOW_35_BITS = (1 << 35) - 1


def fill(
    rows: torch.Tensor, seed: int, layers: npt.NDArray[np.int64], experts: npt.NDArray[np.int64], tensor: int
) -> None:
    """Write the content of tensor number `tensor` of `experts[n]` in `layers[n]` into `rows[n]`; `rows`: `[N, …]`,
    contiguous."""
    import torch

    count = rows.shape[0]
    nbytes = math.prod(rows.shape[1:]) * rows.element_size()
    if count == 0 or nbytes == 0:
        return
    data = rows.view(count, -1).view(torch.uint8)
    words = -(-nbytes // 8)
    limit = WORDS_AT_ONCE[data.device.type]
    at_once = min(words, limit)
    rows_at_once = min(count, max(1, limit // words))
    odd = torch.arange(at_once, dtype=torch.int64, device=data.device).mul_(2).add_(1)
    hashes = torch.from_numpy(_hashes(seed, layers, experts, tensor).view(np.int64)).to(data.device)[:, None]
    buffers = torch.empty((2, rows_at_once, at_once), dtype=torch.int64, device=data.device)
    for first in range(0, count, rows_at_once):
        part = slice(first, min(count, first + rows_at_once))
        word, shifted = buffers[:, : part.stop - first]
        for start in range(0, words, at_once):
            torch.mul(odd, hashes[part], out=word).add_(hashes[part] * (2 * start))
            torch.bitwise_right_shift(word, 29, out=shifted).bitwise_and_(LOW_35_BITS)
            word.bitwise_xor_(shifted)
            target = data[part, 8 * start : 8 * (start + at_once)]
            target.copy_(word.view(torch.uint8)[:, : target.shape[1]])


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
        at_once = max(1, TRUTH_BYTES_AT_ONCE[torch.device(device).type] // spec.nbytes)
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
