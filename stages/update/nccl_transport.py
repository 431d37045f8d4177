"""Batches over NCCL's point-to-point operations, between any GPUs."""

from __future__ import annotations

import numpy as np
import torch
import torch.distributed as dist

from stages.exchanges import Schedule
from stages.update import kernels
from stages.update.launches import launch_copies
from stages.update.link import connect_all
from stages.update.nccl_memory import deregister, register
from stages.update.p2p import PointToPoint
from stages.update.program import Program
from stages.update.rank import Rank
from stages.update.stream_clock import StreamClock, stream
from stages.update.tables import CopyTables, copy_tables

MESSAGES_AT_ONCE = 4
"""So many messages of a few MB fill a link; each process group carries one to each peer at a time."""
VOTES = -1


class NcclTransport:
    """`votes`: a process group of its own, whose collectives wait for no message."""

    def __init__(self, program: Program, network: PointToPoint, votes: dist.ProcessGroup, device: torch.device) -> None:
        self._network, self._votes, self._device = network, votes, device
        self._after, self._phases = program.after, program.phases
        self._schedule: Schedule  # of the attempt that goes on
        self._packs = _pack_tables(network, len(program), device)
        self._go = torch.zeros(max(1, len(program)), dtype=torch.int32, device=device)
        self._stream, self._pack_stream = stream(device, urgent=True), stream(device, urgent=True)
        self._packed: dict[int, torch.cuda.Event] = {}
        self._sent: dict[int, torch.cuda.Event] = {}
        self._settled: dict[int, torch.cuda.Event] = {}

    def begin(self, ahead: torch.cuda.Event, first: int) -> None:
        self._schedule = Schedule(self._after, self._phases, first)
        self._packed.clear()
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
        for number, exchange in self._schedule.due(batch):
            if exchange.opens >= 0:
                self._pack(exchange.opens, clock)
            with torch.cuda.stream(self._stream):
                if exchange.opens >= 0:
                    self._stream.wait_stream(self._pack_stream)
                    settled = self._settled.get(int(self._after[exchange.opens]))
                    if settled is not None:
                        self._stream.wait_event(settled)
                with clock("network", exchange.hops[-1][0]):
                    lanes = range(len(self._network.lanes))
                    for work in [work for lane in lanes for work in self._network.start(exchange.hops, lane)]:
                        work.wait()
                self._sent[number] = self._stream.record_event()
                if exchange.opens >= 0:
                    self._packed[exchange.opens] = self._sent[number]

    def _pack(self, batch: int, clock: StreamClock) -> None:
        if not self._network.packs(batch):
            return
        if batch - 2 in self._packed:  # what it packed is free
            self._pack_stream.wait_event(self._packed[batch - 2])
        with torch.cuda.stream(self._pack_stream), clock("pack", batch):
            launch_copies(self._packs, batch, self._go)

    def arrived(self, batch: int, ballots: torch.Tensor) -> None:
        torch.cuda.current_stream().wait_event(self._sent[self._schedule.last(batch)])

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
