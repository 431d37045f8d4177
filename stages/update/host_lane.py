"""Runs batches where the host does the work: tensors on a CPU, messages over gloo."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
import torch.distributed as dist

from stages.checksum import checksum_rows
from stages.update.lane import Commit, Fault, Hooks, Spans, Vote, faults_of
from stages.update.p2p import Copy, PointToPoint
from stages.update.program import NONE, Program, Writes
from stages.update.staging import Staging
from stages.update.truth import Sums

CHUNK_BYTES = 1 << 20
"""Where writes close to a circle, so much of what is overwritten first is held at a time."""


class HostLane:
    """`slots`: `[L][K]`, bytes `[slots_per_rank, n]`. `truth`: `[L, E, K]`, or None to commit without checking."""

    def __init__(
        self,
        program: Program,
        slots: Sequence[Sequence[torch.Tensor]],
        staging: Staging,
        network: PointToPoint,
        truth: Sums | None,
        on_commit: Commit,
        spans: Spans,
        hooks: Hooks,
    ) -> None:
        self._program, self._slots, self._staging, self._network = program, slots, staging, network
        self._truth, self._on_commit, self._spans, self._hooks = truth, on_commit, spans, hooks
        self._works: dict[int, list[dist.Work]] = {}
        self._committed = 0
        self.faults: list[Fault] = []

    def get_ready(self, first: int) -> None:
        """Nothing takes longer the first time."""

    def stage(self, batch: int) -> None:
        self.faults = []
        self._post(batch)

    def staged(self, batch: int) -> bool:
        return all(work.is_completed() for work in self._works[batch])

    def commit(self, batch: int) -> bool:
        return self._settle(batch)

    def attempt(self, first: int) -> int:
        self._committed = first
        self.faults = []
        posted, total, after = first, len(self._program), self._program.after
        for batch in range(first, total):
            while posted < total and (posted == batch or (posted == batch + 1 and after[posted] < batch)):
                self._post(posted)
                posted += 1
            if not self._settle(batch):
                break
        self.drain()
        return self._committed

    def drain(self) -> None:
        for batch in sorted(self._works):
            self._arrive(batch)

    def _post(self, batch: int) -> None:
        with self._spans("pack", batch):
            _copy(self._network.packs(batch))
        self._hooks.before_send(batch)
        self._works[batch] = self._network.start([(batch, 0)])

    def _settle(self, batch: int) -> bool:
        """Let a batch arrive, check it, vote, and commit it if all ranks agree; False if they do not."""
        with self._spans("network", batch):
            self._arrive(batch)
        self._hooks.after_arrival(batch, self._staging)
        if self._truth is not None:
            with self._spans("hash", batch):
                found = self._check(batch, self._truth)
            with self._spans("wait", batch):
                agreed = _vote(Vote.again if found else Vote.commit)
            if agreed != Vote.commit:
                self.faults = found
                return False
        with self._spans("commit", batch):
            for chain in self._program.writes.of(batch).chains():
                self._write(chain)
        self._committed = batch + 1
        self._on_commit(batch)
        return True

    def _arrive(self, batch: int) -> None:
        for work in self._works.pop(batch):
            work.wait()
        for phase in range(1, self._network.phases(batch)):
            for work in self._network.start([(batch, phase)]):
                work.wait()

    def _check(self, batch: int, truth: Sums) -> list[Fault]:
        """What has arrived with another checksum than all holders of the expert had."""
        arrivals, layout = self._program.arrivals.of(batch), self._staging.layout
        expected = truth[arrivals.layer, arrivals.expert]
        found = np.empty_like(expected)
        edges = np.flatnonzero(np.diff(arrivals.row, prepend=NONE - 1, append=NONE - 1) != 1).tolist()
        for first, last in pairwise(edges):
            row = int(arrivals.row[first])
            for k in range(len(layout.nbytes)):
                found[first:last, k] = checksum_rows(self._staging.tensors(row, row + last - first, k))
        return faults_of(batch, arrivals, expected, found)

    def _write(self, chain: Writes) -> None:
        sources = [self._source(chain, n) for n in range(len(chain))]
        places = zip(chain.layer.tolist(), chain.slot.tolist(), strict=True)
        targets = [[tensor[slot] for tensor in self._slots[layer]] for layer, slot in places]
        if not chain.circular[-1]:
            for target, source in zip(targets, sources, strict=True):
                _copy(list(zip(target, source, strict=True)))
            return
        for k in range(len(self._staging.layout.nbytes)):
            for start in range(0, self._staging.layout.nbytes[k], CHUNK_BYTES):
                part = slice(start, start + CHUNK_BYTES)
                held = sources[-1][k][part].clone()
                for target, source in zip(targets[:-1], sources[:-1], strict=True):
                    target[k][part].copy_(source[k][part])
                targets[-1][k][part].copy_(held)

    def _source(self, writes: Writes, n: int) -> list[torch.Tensor]:
        if writes.from_slot[n] == NONE:
            row = int(writes.from_row[n])
            return [self._staging.tensor(row, k) for k in range(len(self._staging.layout.nbytes))]
        return [tensor[int(writes.from_slot[n])] for tensor in self._slots[int(writes.layer[n])]]


def _copy(copies: Sequence[Copy]) -> None:
    for target, source in copies:
        target.copy_(source)


def _vote(own: Vote) -> Vote:
    """What all ranks agree on: the worst that one of them says."""
    value = torch.tensor([int(own)], dtype=torch.int32)
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return Vote(int(value.item()))
