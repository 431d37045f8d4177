"""Point-to-point operations, counted where they are handed to the network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch.distributed as dist


@dataclass
class Traffic:
    """Bytes handed to `torch.distributed` by this rank."""

    sent: int = 0
    received: int = 0


_counting: list[Traffic] = []


@contextmanager
def counted() -> Iterator[Traffic]:
    """The bytes that `exchange` moves within the block."""
    traffic = Traffic()
    _counting.append(traffic)
    try:
        yield traffic
    finally:
        _counting.remove(traffic)


def exchange(ops: Sequence[dist.P2POp]) -> None:
    """Send and receive all of `ops` in one batch and wait for it (with NCCL, the current stream waits)."""
    if not ops:
        return
    for work in dist.batch_isend_irecv(list(ops)):
        work.wait()
    sent = sum(op.tensor.nbytes for op in ops if op.op is dist.isend)
    received = sum(op.tensor.nbytes for op in ops if op.op is dist.irecv)
    for traffic in _counting:
        traffic.sent += sent
        traffic.received += received
