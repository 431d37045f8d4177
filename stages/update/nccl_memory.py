"""Memory that NCCL reads and writes in place, without a copy through its own buffers, where it can do that."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

_pools: list[Any] = []


@contextmanager
def registrable(device: torch.device) -> Iterator[None]:
    """Within the block tensors come from a pool that `register` can make known to a process group."""
    if device.type != "cuda":
        yield
        return
    if not _pools:
        backend: Any = dist.distributed_c10d._get_default_group()._get_backend(device)
        try:
            _pools.append(torch.cuda.MemPool(backend.mem_allocator))
        except (AttributeError, RuntimeError):  # an older torch or NCCL
            yield
            return
    with torch.cuda.use_mem_pool(_pools[0]):
        yield


def register(group: dist.ProcessGroup, device: torch.device) -> None:
    """Let the group's operations go straight to what was allocated in `registrable` before."""
    backend: Any = group._get_backend(device)
    for pool in _pools:
        backend.register_mem_pool(pool)


def deregister(group: dist.ProcessGroup, device: torch.device) -> None:
    backend: Any = group._get_backend(device)
    for pool in _pools:
        backend.deregister_mem_pool(pool)
