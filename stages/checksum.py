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

from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

COLUMNS = 1024
LENGTH = 0xD6E8FEB86659FD93
CHUNK_BYTES = {"cpu": 1 << 19, "cuda": 1 << 28}
"""Bytes taken at once: what stays in a CPU's cache, and what keeps a GPU busy."""

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
    """[N]: the checksum of each row of `rows` (`[N, …]`, contiguous, any dtype, CPU or GPU)."""
    import torch

    count = rows.shape[0]
    data = rows.reshape(count, -1).view(torch.uint8)
    nbytes = data.shape[1]
    if count == 0 or nbytes == 0:
        return finish(np.zeros(count, dtype=np.uint64), nbytes)
    blocks = -(-nbytes // (4 * COLUMNS))
    columns, factors = _keys(blocks, str(data.device))
    sums = torch.zeros(count, dtype=torch.int64, device=data.device)
    whole = nbytes // (4 * COLUMNS)
    at_once = max(1, CHUNK_BYTES[data.device.type] // (4 * COLUMNS))
    for row in range(count):
        for start in range(0, whole, at_once):
            stop = min(whole, start + at_once)
            words = _words(data[row, start * 4 * COLUMNS : stop * 4 * COLUMNS]).view(-1, COLUMNS)
            sums[row] += ((words * columns).sum(dim=1) * factors[start:stop]).sum()
        if whole < blocks:
            words = _words(data[row, whole * 4 * COLUMNS :])
            sums[row] += (words * columns[: len(words)]).sum() * factors[whole]
    return finish(sums.cpu().numpy().view(np.uint64), nbytes)


def _words(data: torch.Tensor) -> torch.Tensor:
    """`data` (uint8, 1-d) as int32 words, zero-padded; copied only where it does not end or start on a word."""
    import torch

    if data.numel() % 4 or data.storage_offset() % 4:
        padded = torch.zeros(-(-data.numel() // 4) * 4, dtype=torch.uint8, device=data.device)
        padded[: data.numel()] = data
        data = padded
    return data.view(torch.int32)
