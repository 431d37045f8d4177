"""How recorded and queued work gets onto a GPU."""

from __future__ import annotations

import ctypes

import torch

from stages.errors import MoesaicError
from stages.update import kernels
from stages.update.tables import CopyTables


def upload(graph: torch.cuda.CUDAGraph, on: torch.cuda.Stream) -> None:
    """Bring the graph onto the GPU before it is started, which its first start would wait for."""
    function = ctypes.CDLL("libcuda.so.1").cuGraphUpload
    code = function(ctypes.c_void_p(graph.raw_cuda_graph_exec()), ctypes.c_void_p(on.cuda_stream))
    if code:
        raise MoesaicError(f"the recorded update cannot be brought onto the GPU: cuGraphUpload answers {code}")


def launch_copies(tables: CopyTables, batch: int, ballots: torch.Tensor) -> None:
    """Queue the copies of a batch, which are made unless `ballots[batch]` says no."""
    start, stop = tables.work.of_batch(batch)
    if start < stop:
        kernels.copy_chains[(stop - start,)](
            tables.work.items, start, ballots, batch, tables.begin, tables.target, tables.source, tables.nbytes, tables.circular,
            WORD=tables.word, CHUNK=kernels.COPY_BYTES, BLOCK=kernels.COPY_BLOCK, num_warps=8,
        )  # fmt: skip
