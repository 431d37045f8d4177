"""One rank of an update: its process group, its device, and the few collectives that the stage needs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.distributed as dist

from stages.update.machine import cores
from stages.update.progress_board import Phase, ProgressBoard, Report

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store


@dataclass(frozen=True)
class Rank:
    """Rank `rank` of `ranks`, whose default process group exists."""

    rank: int
    ranks: int
    device: torch.device
    backend: str
    board: ProgressBoard

    def report(self, phase: Phase, step: int = 0, steps: int = 0, nbytes: int = 0, all_bytes: int = 0) -> None:
        self.board.report(self.rank, Report(phase, step, steps, nbytes, all_bytes))

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def barrier(self) -> None:
        self.synchronize()
        dist.barrier()

    def slowest(self, seconds: float) -> float:
        """The largest of all ranks' `seconds`."""
        value = torch.tensor([seconds], dtype=torch.float64, device=self.device)
        dist.all_reduce(value, op=dist.ReduceOp.MAX)
        return float(value.item())

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """[R, …]: the tensors of all ranks, which have the same shape, on the CPU."""
        own = tensor.to(self.device).contiguous()
        parts = [torch.empty_like(own) for _ in range(self.ranks)]
        dist.all_gather(parts, own)
        return torch.stack([part.cpu() for part in parts])

    def gather_rows(self, rows: np.ndarray) -> np.ndarray:
        """[R, M, C] from every rank's [m, C], m <= M: missing rows are NaN (of floats) or -1 (of integers)."""
        counts = self.gather(torch.tensor([len(rows)]))
        missing = np.nan if rows.dtype.kind == "f" else -1
        padded = np.full((int(counts.max()), rows.shape[1]), missing, dtype=rows.dtype)
        padded[: len(rows)] = rows
        return self.gather(torch.from_numpy(padded)).numpy()

    def broadcast(self, data: bytes | None) -> bytes:
        """The bytes that rank 0 gave (`data` of the others is None)."""
        size = torch.tensor([len(data or b"")], dtype=torch.int64, device=self.device)
        dist.broadcast(size, src=0)
        content = torch.empty(int(size.item()), dtype=torch.uint8)
        if data is not None:
            content = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        content = content.to(self.device)
        dist.broadcast(content, src=0)
        return content.cpu().numpy().tobytes()


@contextmanager
def joined(
    store: Store,
    rank: int,
    ranks: int,
    *,
    backend: str,
    local_rank: int,
    timeout_seconds: float,
    board: ProgressBoard,
) -> Iterator[Rank]:
    """Within the block this process is a rank of the default process group, which meets at `store`.

    When the block ends well, it is left together: a rank that closes its connections early looks like a dead one.
    When it does not, the group is left as it is, since closing may wait for peers: end the process, or `abandon()`.
    """
    board.report(rank, Report(Phase.connect))
    device = torch.device("cpu")
    if backend == "nccl":
        device = torch.device("cuda", local_rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
    timeout = timedelta(seconds=timeout_seconds)
    store.set_timeout(timeout)
    device_id = device if backend == "nccl" else None
    dist.init_process_group(backend, store=store, rank=rank, world_size=ranks, timeout=timeout, device_id=device_id)
    yield Rank(rank, ranks, device, backend, board)
    store.set(f"left/{rank}", "1")
    store.wait([f"left/{other}" for other in range(ranks)])
    dist.destroy_process_group()


def abandon() -> None:
    """Close the process group without its peers, which fails what they wait for; from any thread."""
    if dist.is_initialized():
        dist.distributed_c10d._abort_process_group()


def limit_threads(local_ranks: int) -> None:
    """Share this host's cores evenly between its ranks."""
    torch.set_num_threads(max(1, cores() // local_ranks))
