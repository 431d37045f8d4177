"""The truth about synthetic weights: every expert made anew by the generator, and its checksums."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from stages.contract import Progress
from stages.model import TensorSpec
from stages.synthetic import truth

PIECE_BYTES = 1 << 28
THREADS = 4
"""More only wait for the interpreter between operations: 1, 2, 4, 8 and 16 threads made 1.0, 1.6, 2.3, 1.4 and 1.3 GB/s
on 16 cores."""
GPU_BYTES = 1 << 31
"""Free memory that a GPU must have to be used; about half of it is needed."""


def recompute(
    specs: list[TensorSpec],
    seed: int,
    layers: npt.NDArray[np.int64],
    experts: npt.NDArray[np.int64],
    progress: Progress,
) -> npt.NDArray[np.uint64]:
    """[N, K]: the checksum that each of the K tensors of `experts[n]` in `layers[n]` must have.

    On a GPU where there is one with room, else on a few threads, each with experts of its own. A thread holds 8 MiB
    of weights at a time, or one tensor where that is larger.
    """
    import torch

    device, threads = _device(), torch.get_num_threads()
    workers = 1 if device == "cuda" else min(threads, THREADS)
    nbytes = len(layers) * sum(spec.nbytes for spec in specs)
    pieces = np.array_split(np.arange(len(layers)), max(4 * workers, nbytes // PIECE_BYTES))
    parts: list[npt.NDArray[np.uint64]] = []
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(workers) as pool:
            for part in pool.map(lambda rows: truth(specs, seed, layers[rows], experts[rows], device), pieces):
                parts.append(part)
                progress("making the weights anew", len(parts) / len(pieces))
    finally:
        torch.set_num_threads(threads)
        if device == "cuda":
            torch.cuda.empty_cache()
    return np.concatenate(parts)


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() and torch.cuda.mem_get_info()[0] >= GPU_BYTES else "cpu"
