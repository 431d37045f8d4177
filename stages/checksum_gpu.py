"""Checksums of rows on a GPU, with Triton: all rows of all tensors in one launch, or two if some are not aligned."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import numpy.typing as npt
import torch

from stages import checksum_kernel
from stages.checksum import BLOCK, block_keys, column_keys, finish, row_bytes

CHUNK = 131072
"""Bytes that one program hashes: a GPU that does nothing else reads memory fastest so."""
ALIGNMENT = 16


def checksum_tensors(tensors: Sequence[torch.Tensor]) -> list[npt.NDArray[np.uint64]]:
    """For each tensor `[N, …]`, all on one GPU: `[N]`, the checksum of each of its rows."""
    rows = [row_bytes(tensor) for tensor in tensors if tensor.numel()]
    if not rows:
        return [finish(np.zeros(len(tensor), dtype=np.uint64), 0) for tensor in tensors]
    device = rows[0].device
    address = np.concatenate([data.data_ptr() + np.arange(len(data)) * data.stride(0) for data in rows])
    nbytes = np.concatenate([np.full(len(data), data.shape[1]) for data in rows])
    sums = torch.zeros(len(address), dtype=torch.int64, device=device)
    source, sizes = (torch.from_numpy(values).to(device) for values in (address, nbytes))
    columns, factors = _keys(int(-(-nbytes.max() // BLOCK)), device)
    aligned = address % ALIGNMENT == 0
    for fits in (True, False):
        chosen = np.flatnonzero(aligned == fits)
        chunks = np.maximum(1, -(-nbytes[chosen] // CHUNK))
        row = np.repeat(chosen, chunks)
        if len(row):
            chunk = np.arange(len(row)) - np.repeat(np.cumsum(chunks) - chunks, chunks)
            work = torch.from_numpy(np.stack([row, chunk], axis=1).astype(np.int32)).to(device)
            checksum_kernel.hash_rows[(len(row),)](
                work, 0, source, sizes, columns, factors, sums,
                ALIGNED=fits, BLOCKS=CHUNK // BLOCK, num_warps=checksum_kernel.HASH_WARPS,
            )  # fmt: skip
    found = sums.cpu().numpy().view(np.uint64)
    out, first = [], 0
    for tensor in tensors:
        last = first + (len(tensor) if tensor.numel() else 0)
        own = found[first:last] if tensor.numel() else np.zeros(len(tensor), dtype=np.uint64)
        out.append(finish(own, tensor.nbytes // max(1, len(tensor))))
        first = last
    return out


@cache
def _keys(blocks: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    columns, factors = column_keys().view(np.int64), block_keys(blocks).view(np.int64)
    return torch.from_numpy(columns).to(device), torch.from_numpy(factors).to(device)
