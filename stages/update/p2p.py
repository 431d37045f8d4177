"""Moves the batches of a program with the point-to-point operations of torch.distributed, over NCCL or gloo.

Large tensors travel out of their slots. Small ones that go to one peer in one batch are packed into one message where
staging has room for the copies, since an operation costs more than a copy. What goes to one peer is dealt out to
`lanes`, process groups of their own: NCCL carries the messages of one group one after the other, and a message of a few
MB alone does not fill a link.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
import torch.distributed as dist

from stages.update.exchange import Traffic
from stages.update.program import NONE, Arrivals, Program, Sends
from stages.update.staging import Staging

Copy = tuple[torch.Tensor, torch.Tensor]
Message = tuple[torch.Tensor, int]


@dataclass
class _Phase:
    """Messages (bytes, peer), both lists in the order that the peer has them in too."""

    outgoing: list[Message] = field(default_factory=list)
    incoming: list[Message] = field(default_factory=list)


class PointToPoint:
    """One rank's messages of all batches, made once.

    slots: `[L][K]`, bytes `[slots_per_rank, n]`. packed: small rows for copies of what is sent, for two batches; None: no
    packing. lanes: the process groups that carry the messages; [None]: the default one.
    """

    def __init__(
        self,
        program: Program,
        slots: Sequence[Sequence[torch.Tensor]],
        staging: Staging,
        packed: torch.Tensor | None,
        lanes: Sequence[dist.ProcessGroup | None] = (None,),
    ) -> None:
        self._slots, self._staging, self._packed, self.lanes = slots, staging, packed, lanes
        layout = staging.layout
        every = range(len(layout.nbytes))
        self._packs_small = packed is not None and layout.small_row > 0
        self._alone = [k for k in every if not (self._packs_small and layout.small[k])]
        self._small = [k for k in every if layout.small[k]]
        self._packs: list[list[Copy]] = []
        self._batches = [
            self._phases(batch, program.sends.of(batch), program.arrivals.of(batch), int(program.phases[batch]))
            for batch in range(len(program))
        ]
        padding = layout.small_padding if self._packs_small else 0
        self._padding = [
            (len(program.sends.of(b)) * padding, len(program.arrivals.of(b)) * padding) for b in range(len(program))
        ]
        self.traffic = Traffic()

    def phases(self, batch: int) -> int:
        return len(self._batches[batch])

    def packs(self, batch: int) -> list[Copy]:
        """(target, source): what must be copied before the messages of a batch may start."""
        return self._packs[batch]

    def start(self, hops: Sequence[tuple[int, int]], lane: int = 0) -> list[dist.Work]:
        """Hand the messages of hops (batch, phase) that go by one lane to the network, all together."""
        outgoing: list[Message] = []
        incoming: list[Message] = []
        for batch, phase in hops:
            messages, count = self._batches[batch][phase], len(self.lanes)
            outgoing += _dealt(messages.outgoing, lane, count)
            incoming += _dealt(messages.incoming, lane, count)
            if phase == lane == 0:
                sent, received = self._padding[batch]
                self.traffic.sent -= sent
                self.traffic.received -= received
        self.traffic.sent += sum(data.nbytes for data, _ in outgoing)
        self.traffic.received += sum(data.nbytes for data, _ in incoming)
        ops = [dist.P2POp(dist.isend, data, peer, self.lanes[lane]) for data, peer in outgoing]
        ops += [dist.P2POp(dist.irecv, data, peer, self.lanes[lane]) for data, peer in incoming]
        return dist.batch_isend_irecv(ops) if ops else []

    def _phases(self, batch: int, sends: Sends, arrivals: Arrivals, count: int) -> list[_Phase]:
        phases = [_Phase() for _ in range(count)]
        packs: list[Copy] = []
        self._packs.append(packs)
        row_bytes = self._staging.layout.small_row
        used = (batch % 2) * (len(self._packed) // 2) if self._packed is not None else 0
        for first, last in _runs(sends.phase, sends.peer, sends.to_row):
            phase, peer = phases[int(sends.phase[first])], int(sends.peer[first])
            for n in range(first, last):
                phase.outgoing += [(self._source(sends, n, k), peer) for k in self._alone]
            if self._packs_small and sends.phase[first]:  # what is forwarded lies in staging already
                phase.outgoing += [(self._staging.small_rows(row, row + 1), peer) for row in sends.from_row[first:last]]
            elif self._packs_small:
                assert self._packed is not None
                begin = used
                for n in range(first, last):
                    for k in self._small:
                        start = used + self._staging.layout.offsets[k]
                        target = self._packed[start : start + self._staging.layout.nbytes[k]]
                        packs.append((target, self._source(sends, n, k)))
                    used += row_bytes
                phase.outgoing.append((self._packed[begin:used], peer))
        for first, last in _runs(arrivals.phase, arrivals.peer, arrivals.row):
            phase, peer = phases[int(arrivals.phase[first])], int(arrivals.peer[first])
            for row in arrivals.row[first:last].tolist():
                phase.incoming += [(self._staging.tensor(row, k), peer) for k in self._alone]
            if self._packs_small:
                edges = arrivals.row[first:last] if arrivals.phase[first] else arrivals.row[first : first + 1]
                rows = 1 if arrivals.phase[first] else last - first
                phase.incoming += [(self._staging.small_rows(row, row + rows), peer) for row in edges.tolist()]
        return phases

    def _source(self, sends: Sends, n: int, k: int) -> torch.Tensor:
        """The bytes of tensor k that leave."""
        if sends.slot[n] == NONE:
            return self._staging.tensor(int(sends.from_row[n]), k)
        return self._slots[int(sends.layer[n])][k][int(sends.slot[n])]


def _dealt(messages: Sequence[Message], lane: int, lanes: int) -> list[Message]:
    """Every `lanes`-th message of each peer: both ends count them alike."""
    if lanes == 1:
        return list(messages)
    count: dict[int, int] = defaultdict(int)
    mine = []
    for message in messages:
        if count[message[1]] % lanes == lane:
            mine.append(message)
        count[message[1]] += 1
    return mine


def _runs(phase: np.ndarray, peer: np.ndarray, row: np.ndarray) -> list[tuple[int, int]]:
    """First and last + 1 of each run of rows that lie side by side in the receiver's staging, for one peer and phase."""
    if not len(phase):
        return []
    breaks = (np.diff(phase) != 0) | (np.diff(peer) != 0) | (np.diff(row) != 1)
    edges = [0, *(np.flatnonzero(breaks) + 1).tolist(), len(phase)]
    return list(pairwise(edges))
