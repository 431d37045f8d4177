"""Batches over NCCL's point-to-point operations, between any GPUs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist

from stages.update import kernels
from stages.update.launches import launch_copies
from stages.update.link import connect_all
from stages.update.nccl_memory import deregister, register
from stages.update.p2p import PointToPoint
from stages.update.rank import Rank
from stages.update.stream_clock import StreamClock, stream
from stages.update.tables import CopyTables, copy_tables

MESSAGES_AT_ONCE = 4
"""So many messages of a few MB fill a link; each process group carries one to each peer at a time."""
VOTES = -1


class NcclTransport:
    """`after`: `[B]`, see `Batches`. `votes`: a process group of its own, whose collectives wait for no message."""

    def __init__(
        self, network: PointToPoint, after: Sequence[int], votes: dist.ProcessGroup, device: torch.device
    ) -> None:
        self._network, self._after, self._votes, self._device = network, after, votes, device
        self._packs = _pack_tables(network, len(after), device)
        self._go = torch.zeros(max(1, len(after)), dtype=torch.int32, device=device)
        self._stream, self._pack_stream = stream(device, urgent=True), stream(device, urgent=True)
        self._sent: dict[int, torch.cuda.Event] = {}
        self._settled: dict[int, torch.cuda.Event] = {}

    def begin(self, ahead: torch.cuda.Event) -> None:
        self._sent.clear()
        self._settled.clear()
        self._stream.wait_event(ahead)
        self._pack_stream.wait_event(ahead)

    def warm_up(self) -> None:
        for batch in range(len(self._after)):
            if self._network.packs(batch):
                launch_copies(self._packs, batch, torch.ones_like(self._go))
                break
        dist.all_reduce(torch.zeros_like(self._go), group=self._votes)

    def post(self, batch: int, clock: StreamClock) -> None:
        if self._network.packs(batch):
            if batch - 2 in self._sent:  # what it packed is free
                self._pack_stream.wait_event(self._sent[batch - 2])
            with torch.cuda.stream(self._pack_stream), clock("pack", batch):
                launch_copies(self._packs, batch, self._go)
        with torch.cuda.stream(self._stream):
            self._stream.wait_stream(self._pack_stream)
            if self._after[batch] in self._settled:
                self._stream.wait_event(self._settled[self._after[batch]])
            with clock("network", batch):
                for phase in range(self._network.phases(batch)):
                    works = [
                        w for lane in range(len(self._network.lanes)) for w in self._network.start(batch, phase, lane)
                    ]
                    for work in works:
                        work.wait()
            self._sent[batch] = self._stream.record_event()

    def arrived(self, batch: int, ballots: torch.Tensor) -> None:
        torch.cuda.current_stream().wait_event(self._sent[batch])

    def vote(self, batch: int, ballots: torch.Tensor) -> None:
        dist.all_reduce(ballots[batch : batch + 1], op=dist.ReduceOp.MAX, group=self._votes)

    def settled(self, batch: int, committed: torch.cuda.Event) -> None:
        self._settled[batch] = committed

    def join(self) -> None:
        torch.cuda.current_stream().wait_stream(self._stream)
        torch.cuda.current_stream().wait_stream(self._pack_stream)

    def close(self) -> None:
        """All ranks are done: give the groups' hold of memory back."""
        for group in self._network.lanes:
            assert group is not None
            deregister(group, self._device)


def message_groups(rank: Rank) -> list[dist.ProcessGroup]:
    """The lanes of `PointToPoint`, which reach what was allocated as `registrable`: with fewer peers more of them."""
    groups = [urgent_group(rank, number) for number in range(max(1, MESSAGES_AT_ONCE // max(1, rank.ranks - 1)))]
    for group in groups:
        register(group, rank.device)
    return groups


def vote_group(rank: Rank) -> dist.ProcessGroup:
    return urgent_group(rank, VOTES)


_groups: dict[tuple[dist.ProcessGroup, int], dist.ProcessGroup] = {}


def urgent_group(rank: Rank, number: int) -> dist.ProcessGroup:
    """A process group of all ranks whose kernels start before others that wait for the GPU; made and connected once."""
    key = dist.distributed_c10d._get_default_group(), number
    if key not in _groups:
        options = dist.ProcessGroupNCCL.Options()
        options.is_high_priority_stream = True
        group = dist.new_group(pg_options=options)
        assert isinstance(group, dist.ProcessGroup)
        connect_all(rank, group)
        _groups[key] = group
    return _groups[key]


def _pack_tables(network: PointToPoint, batches: int, device: torch.device) -> CopyTables:
    copies = [(batch, target, source) for batch in range(batches) for target, source in network.packs(batch)]
    batch = np.array([batch for batch, _, _ in copies], dtype=np.int64)
    target = np.array([target.data_ptr() for _, target, _ in copies], dtype=np.int64)
    source = np.array([source.data_ptr() for _, _, source in copies], dtype=np.int64)
    nbytes = np.array([target.nbytes for _, target, _ in copies], dtype=np.int64)
    begin, circular = np.arange(len(copies) + 1), np.zeros(len(copies), dtype=np.int64)
    return copy_tables(batch, begin, target, source, nbytes, circular, batches, kernels.COPY_BYTES, device)
