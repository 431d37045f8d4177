"""Batches as copies into the staging of other GPUs of this host, which all GPUs have mapped (symmetric memory).

Large tensors are put by copy engines, which leave the multiprocessors to the model and to the hashes; a few programs of
a kernel put the others at the same time, and fill the gaps between the large ones. Ranks meet through numbers that they
write into each other's memory: no host is involved.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed._symmetric_memory as symmetric

from stages.exchanges import Schedule
from stages.update import kernels
from stages.update.exchange import Traffic
from stages.update.program import NONE, Program
from stages.update.staging import Staging
from stages.update.stream_clock import StreamClock, stream
from stages.update.tables import Addresses, send_tables

CHANNELS = ARRIVED, VOTE, PHASE, FREE = range(4)
PUSH_PROGRAMS = 12
PUSH_WARPS = 32
PUSH_BYTES = 65536
PUSH_BLOCK = 8192
ENGINE_BYTES = 4 << 20
"""Tensors of so many bytes and more are put by copy engines."""


class PeerMemory:
    """Staging of `nbytes` on this rank, mapped by all others, and the pads through which ranks meet."""

    def __init__(self, rank: int, ranks: int, nbytes: int, device: torch.device) -> None:
        self.rank, self.ranks = rank, ranks
        staged = -(-nbytes // 256) * 256
        pad = len(CHANNELS) * ranks * 8
        self._buffer = symmetric.empty(staged + pad, dtype=torch.uint8, device=device)
        self._handle = symmetric.rendezvous(self._buffer, dist.distributed_c10d._get_default_group())
        self._buffer[staged:].zero_()
        self.data = self._buffer[:nbytes]
        self.bases = np.array(list(self._handle.buffer_ptrs), dtype=np.int64)
        self.pads = torch.from_numpy(self.bases + staged).to(device)
        self.own_pad = self._buffer[staged:].view(torch.int64)
        torch.cuda.synchronize(device)
        dist.barrier()

    def close(self) -> None:
        """Nobody writes here any more."""
        dist.barrier()

    def of(self, peer: int) -> torch.Tensor:
        """The staging of another rank."""
        return self._handle.get_buffer(peer, tuple(self.data.shape), torch.uint8)


class PeerTransport:
    def __init__(
        self,
        program: Program,
        slots: Sequence[Sequence[torch.Tensor]],
        staging: Staging,
        memory: PeerMemory,
        timeout_seconds: float,
    ) -> None:
        device = staging.data.device
        self._memory, self._after, self._phases = memory, program.after, program.phases
        self._schedule: Schedule  # of the attempt that goes on
        self._timeout_ns = int(timeout_seconds * 1e9)
        sends, at = program.sends, Addresses.of(slots, staging)
        targets = at.of_rows(memory.bases[sends.peer], sends.to_row)
        by_engine = np.broadcast_to(at.nbytes >= ENGINE_BYTES, targets.shape)
        # A batch with several phases is a batch of its own for each phase to the kernel.
        self._first_step = np.append(0, np.cumsum(program.phases)).tolist()
        step = np.repeat(np.asarray(self._first_step[:-1]), np.diff(sends.begin)) + sends.phase
        steps = self._first_step[-1]
        self._pushes = send_tables(sends, step, steps, targets, at, staging, ~by_engine, PUSH_BYTES, device)
        self._puts: list[list[tuple[torch.Tensor, torch.Tensor]]] = [[] for _ in range(steps)]
        remote = {peer: Staging(staging.layout, staging.rows, memory.of(peer)) for peer in set(sends.peer.tolist())}
        for n, k in zip(*np.nonzero(by_engine), strict=True):
            source = (
                slots[sends.layer[n]][k][sends.slot[n]]
                if sends.slot[n] != NONE
                else staging.tensor(int(sends.from_row[n]), int(k))
            )
            self._puts[step[n]].append((remote[int(sends.peer[n])].tensor(int(sends.to_row[n]), int(k)), source))
        self._stream, self._push_stream, self._free_stream = (stream(device, urgent=True) for _ in range(3))
        self._epochs = [0] * len(CHANNELS)
        self._late = torch.zeros(1, dtype=torch.int32, device=device)
        self._free: dict[int, torch.cuda.Event] = {}
        self._sent: dict[int, torch.cuda.Event] = {}
        self.traffic = Traffic()
        self._bytes = [
            (int(len(program.sends.of(b)) * at.nbytes.sum()), int(len(program.arrivals.of(b)) * at.nbytes.sum()))
            for b in range(len(program))
        ]

    def begin(self, ahead: torch.cuda.Event, first: int) -> None:
        self._schedule = Schedule(self._after, self._phases, first)
        self._free.clear()
        self._sent.clear()
        self._stream.wait_event(ahead)
        self._push_stream.wait_event(ahead)
        self._free_stream.wait_event(ahead)

    def warm_up(self) -> None:
        self._push(0, 0)
        for channel in CHANNELS:
            self._meet(channel, self._late, 0)

    def post(self, batch: int, clock: StreamClock) -> None:
        for number, exchange in self._schedule.due(batch):
            with torch.cuda.stream(self._stream):
                free = self._free.get(int(self._after[exchange.opens])) if exchange.opens >= 0 else None
                if free is not None:
                    self._stream.wait_event(free)
                with clock("network", exchange.hops[-1][0]):
                    if any(phase for _, phase in exchange.hops):  # what is forwarded is there on all ranks
                        self._meet(PHASE, self._late, 0)
                    for which, phase in exchange.hops:
                        self._put(self._first_step[which] + phase)
                self._sent[number] = self._stream.record_event()
            if exchange.opens >= 0:
                sent, received = self._bytes[exchange.opens]
                self.traffic.sent += sent
                self.traffic.received += received

    def arrived(self, batch: int, ballots: torch.Tensor) -> None:
        torch.cuda.current_stream().wait_event(self._sent[self._schedule.last(batch)])
        self._meet(ARRIVED, ballots, batch)

    def vote(self, batch: int, ballots: torch.Tensor) -> None:
        self._meet(VOTE, ballots, batch)

    def settled(self, batch: int, committed: torch.cuda.Event) -> None:
        """When all ranks have committed the batch, what it took of their staging is free."""
        with torch.cuda.stream(self._free_stream):
            self._free_stream.wait_event(committed)
            self._meet(FREE, self._late, 0)
            self._free[batch] = self._free_stream.record_event()

    def join(self) -> None:
        torch.cuda.current_stream().wait_stream(self._stream)
        torch.cuda.current_stream().wait_stream(self._push_stream)
        torch.cuda.current_stream().wait_stream(self._free_stream)

    def _put(self, step: int) -> None:
        start, stop = self._pushes.work.of_batch(step)
        if start < stop:
            self._push_stream.wait_stream(self._stream)
            with torch.cuda.stream(self._push_stream):
                self._push(start, stop)
        for target, source in self._puts[step]:
            target.copy_(source)
        if start < stop:
            self._stream.wait_stream(self._push_stream)

    def _push(self, start: int, stop: int) -> None:
        pushes = self._pushes
        kernels.push[(max(1, min(PUSH_PROGRAMS, stop - start)),)](
            pushes.work.items, start, stop, pushes.target, pushes.source, pushes.nbytes,
            WORD=pushes.word, CHUNK=PUSH_BYTES, BLOCK=min(PUSH_BLOCK, PUSH_BYTES // pushes.word), num_warps=PUSH_WARPS,
        )  # fmt: skip

    def _meet(self, channel: int, ballots: torch.Tensor, batch: int) -> None:
        self._epochs[channel] += 1
        memory = self._memory
        kernels.meet[(1,)](
            memory.pads, memory.own_pad, memory.rank, memory.ranks, channel, self._epochs[channel], ballots,
            batch, self._timeout_ns, PEERS=max(2, 1 << (memory.ranks - 1).bit_length()), num_warps=1,
        )  # fmt: skip
