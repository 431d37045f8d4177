"""How fast the network is right now: the yardstick for the update's own rate."""

from __future__ import annotations

import time

import torch
import torch.distributed as dist

from stages.update.exchange import exchange
from stages.update.rank import Rank

REPEATS = 3


def connect_all(rank: Rank, group: dist.ProcessGroup | None = None) -> None:
    """Exchange a byte with every peer: connections are made on first use, which is no part of an update."""
    peers = [peer for peer in range(rank.ranks) if peer != rank.rank]
    outgoing = torch.zeros(1, dtype=torch.uint8, device=rank.device)
    incoming = torch.zeros(rank.ranks, 1, dtype=torch.uint8, device=rank.device)
    ops = [dist.P2POp(dist.isend, outgoing, peer, group) for peer in peers]
    exchange(ops + [dist.P2POp(dist.irecv, incoming[peer], peer, group) for peer in peers])
    rank.synchronize()


def measure_link(rank: Rank, mib: int) -> float:
    """GB/s per direction of the slowest rank when every rank sends `mib` MiB to the next one and receives as much
    from the one before at the same time; the best of a few tries after a warm-up. 0 for one rank."""
    if rank.ranks == 1:
        return 0.0
    outgoing = torch.zeros(mib << 20, dtype=torch.uint8, device=rank.device)
    incoming = torch.empty_like(outgoing)
    after, before = (rank.rank + 1) % rank.ranks, (rank.rank - 1) % rank.ranks
    best = float("inf")
    for attempt in range(1 + REPEATS):
        rank.barrier()
        begin = time.perf_counter()
        exchange([dist.P2POp(dist.isend, outgoing, after), dist.P2POp(dist.irecv, incoming, before)])
        rank.synchronize()
        seconds = rank.slowest(time.perf_counter() - begin)
        if attempt:
            best = min(best, seconds)
    return outgoing.nbytes / best / 1e9
