"""The truth about weights: every expert made anew by the generator, or read anew from its files, and its checksums."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from stages import weight_source
from stages.contract import Count, Progress
from stages.model import TensorSpec
from stages.synthetic import truth
from stages.verify.expected import Ints, Sums
from stages.weight_source import ExpertSource

PIECE_BYTES = 1 << 28
THREADS = 4
"""More only wait for the interpreter between operations: 1, 2, 4, 8 and 16 threads made 1.0, 1.6, 2.3, 1.4 and 1.3 GB/s
on 16 cores."""
GPU_BYTES = 1 << 31
"""Free memory that a GPU must have to be used; about half of it is needed."""


def recompute(
    specs: list[TensorSpec],
    seed: int,
    layers: Ints,
    experts: Ints,
    progress: Progress,
) -> Sums:
    """[N, K]: the checksum that each of the K tensors of the synthetic `experts[n]` in `layers[n]` must have.

    On a GPU where there is one with room, else on a few threads, each with experts of its own. A thread holds 8 MiB
    of weights at a time, or one tensor where that is larger.
    """
    device = _device()

    def some(rows: Ints) -> Sums:
        return truth(specs, seed, layers[rows], experts[rows], device)

    try:
        return _in_pieces(some, len(layers), specs, 1 if device == "cuda" else THREADS, "making", progress)
    finally:
        if device == "cuda":
            import torch

            torch.cuda.empty_cache()


def reread(source: ExpertSource, layers: Ints, experts: Ints, progress: Progress) -> Sums:
    """[N, K]: the checksum that each of the K tensors of `experts[n]` in `layers[n]` has in its file, by as many
    threads. Each holds one tensor at a time."""

    def some(rows: Ints) -> Sums:
        return weight_source.truth(source, layers[rows], experts[rows])

    return _in_pieces(some, len(layers), source.specs, THREADS, "reading", progress)


def _in_pieces(
    some: Callable[[Ints], Sums], count: int, specs: list[TensorSpec], threads: int, verb: str, progress: Progress
) -> Sums:
    """`some` of the rows 0 to `count`, piece by piece on several threads, put together."""
    import torch

    before = torch.get_num_threads()
    workers = min(before, threads)
    nbytes = count * sum(spec.nbytes for spec in specs)
    pieces = np.array_split(np.arange(count), max(4 * workers, nbytes // PIECE_BYTES))
    parts: list[Sums] = []
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(workers) as pool:
            for part in pool.map(some, pieces):
                parts.append(part)
                done = len(parts) / len(pieces)
                progress(f"{verb} the weights anew", done, Count("bytes", done * nbytes, nbytes))
    finally:
        torch.set_num_threads(before)
    return np.concatenate(parts)


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() and torch.cuda.mem_get_info()[0] >= GPU_BYTES else "cpu"
