"""A 64-bit checksum of one tensor of one slot, the same on CPU and GPU, over bytes whatever the dtype.

The bytes of a row, zero-padded to whole 32-bit words w (little endian, signed), lie in blocks r of 1024 columns c:

    checksum = mix64( sum_r m_r * sum_c k_c * w[r, c]  +  nbytes * LENGTH )      (mod 2^64)
    k_c = (2c + 1) + 2^11 * a_c        a_c, b_r: bits of splitmix64, so that chance alone decides elsewhere
    m_r = 1 + 2^11 * r + 2^33 * b_r

This is multilinear hashing (Lemire and Kaser, "Strongly universal string hashing is fast", 2014) with two properties
made certain for rows up to 16 GiB. A change of one word alters the sum, since k_c * m_r is odd and words differ by less
than 2^32. So does a swap of two words: the factors of two positions differ by a multiple of at most 2^32 (in their low
11 bits when columns differ, else by an odd multiple of 2^11 (r - r')), and words by less than 2^32, so that the
product of both differences is no multiple of 2^64. The length in bytes is added, mix64 is a bijection.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

COLUMNS = 1024
BLOCK = 4 * COLUMNS
LENGTH = 0xD6E8FEB86659FD93
CHUNK_BYTES = {"cpu": 1 << 19, "cuda": 1 << 26}
"""Bytes taken at once: what stays in a CPU's cache, and what keeps a GPU busy (products take twice as much)."""

_U64 = npt.NDArray[np.uint64]


def splitmix64(value: _U64) -> _U64:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014) at `value` + 1 steps of its counter."""
    x = (value + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def column_keys() -> _U64:
    """[1024]: k_c."""
    c = np.arange(COLUMNS, dtype=np.uint64)
    return (np.uint64(2) * c + np.uint64(1)) + (splitmix64(c) << np.uint64(11))


def block_keys(blocks: int) -> _U64:
    """[blocks]: m_r."""
    r = np.arange(blocks, dtype=np.uint64)
    return np.uint64(1) + (r << np.uint64(11)) + (splitmix64(r ^ np.uint64(0x5851F42D4C957F2D)) << np.uint64(33))


@cache
def _keys(blocks: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    import torch

    columns = torch.from_numpy(column_keys().view(np.int64)).to(device)
    return columns, torch.from_numpy(block_keys(blocks).view(np.int64)).to(device)


def finish(sums: _U64, nbytes: int) -> _U64:
    """The checksums of rows of `nbytes` bytes from their multilinear sums."""
    return splitmix64(sums + np.uint64(nbytes * LENGTH % 2**64))


def checksum_rows(rows: torch.Tensor) -> _U64:
    """[N]: the checksum of each row of `rows` (`[N, …]`, any dtype, CPU or GPU; copied unless each row is contiguous)."""
    return checksum_tensors([rows])[0]


def checksum_tensors(tensors: Sequence[torch.Tensor]) -> list[_U64]:
    """For each tensor `[N, …]`, all on one device: `[N]`, the checksum of each of its rows."""
    if tensors and tensors[0].is_cuda and find_spec("triton"):
        from stages import checksum_gpu

        return checksum_gpu.checksum_tensors(tensors)
    return [_checksum_rows(rows) for rows in tensors]


def _checksum_rows(rows: torch.Tensor) -> _U64:
    import torch

    count = rows.shape[0]
    nbytes = math.prod(rows.shape[1:]) * rows.element_size()
    if count == 0 or nbytes == 0:
        return finish(np.zeros(count, dtype=np.uint64), nbytes)
    data = row_bytes(rows)
    whole, rest = divmod(nbytes, BLOCK)
    columns, factors = _keys(whole + (rest > 0), str(data.device))
    sums = torch.zeros(count, dtype=torch.int64, device=data.device)
    if rest:
        words = _words(data[:, whole * BLOCK :])
        sums += (words * columns[: words.shape[1]]).sum(dim=1) * factors[whole]
    at_once = max(1, CHUNK_BYTES[data.device.type] // BLOCK)
    rows_at_once = max(1, at_once // max(1, whole))
    # One buffer for all products: allocating each anew costs threads more in page faults than the arithmetic.
    shape = (min(count, rows_at_once), min(whole, at_once), COLUMNS)
    products = torch.empty(shape, dtype=torch.int64, device=data.device)
    for first in range(0, count, rows_at_once):
        part = slice(first, min(count, first + rows_at_once))
        for start in range(0, whole, at_once):
            blocks = slice(start, min(whole, start + at_once))
            words = _words(data[part, blocks.start * BLOCK : blocks.stop * BLOCK])
            words = words.view(len(words), -1, COLUMNS)
            product = torch.mul(words, columns, out=products[: words.shape[0], : words.shape[1]])
            sums[part] += (product.sum(dim=2) * factors[blocks]).sum(dim=1)
    return finish(sums.cpu().numpy().view(np.uint64), nbytes)


def row_bytes(rows: torch.Tensor) -> torch.Tensor:
    """[N, bytes]: `rows` (N > 0) as uint8, in place where each row is contiguous."""
    import torch

    if not rows[0].is_contiguous():
        rows = rows.contiguous()
    return rows.flatten(1).view(torch.uint8) if rows.dim() > 1 else rows[:, None].view(torch.uint8)


def _words(data: torch.Tensor) -> torch.Tensor:
    """[N, W]: `data` (uint8, `[N, bytes]`) as int32 words, zero-padded; copied only where rows are not whole words."""
    import torch

    count, nbytes = data.shape
    if nbytes % 4 or data.storage_offset() % 4 or data.stride(0) % 4:
        padded = torch.zeros((count, -(-nbytes // 4) * 4), dtype=torch.uint8, device=data.device)
        padded[:, :nbytes] = data
        data = padded
    return data.view(torch.int32)
