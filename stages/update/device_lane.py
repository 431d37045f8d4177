"""Runs batches where GPUs do the work: everything is queued beforehand, and the host is never waited for.

Batches go through three queues: on their way, checked, committed. A commit is one kernel that does nothing unless the
batch's ballot, a number on the GPU, says that all ranks found the batch right; once one says no, so do those after it,
and nothing more is committed until the next attempt. The first attempt is recorded as a CUDA graph
while the program is made, and takes the host one launch. A later one is queued by the host, which reads ballots
`WINDOW` batches late, so that all ranks queue the same batches.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import numpy as np
import torch
import torch.distributed as dist

from stages import checksum_kernel
from stages.checksum import BLOCK, LENGTH
from stages.errors import MoesaicError
from stages.update import kernels
from stages.update.garbage import no_garbage_collection
from stages.update.lane import Commit, Fault, Hooks, faults_of
from stages.update.launches import launch_copies, upload
from stages.update.lifeboat import Lifeboat
from stages.update.program import Program
from stages.update.staging import Staging
from stages.update.stream_clock import StreamClock, stream
from stages.update.tables import Addresses, commit_tables, hash_tables
from stages.update.truth import Sums

HASH_BYTES = 32768
"""What one program hashes: little, since programs beside ones that write to another GPU are slow."""
WINDOW = 8
SIGNED_LENGTH = LENGTH - (1 << 64)
OPEN = -1
"""A ballot that has not been read off the GPU."""
MISSED = 2
"""From here on a ballot names the rank that did not come in time."""


class Transport(Protocol):
    """Carries batches into the receivers' staging, and ballots to all ranks."""

    def begin(self, ahead: torch.cuda.Event, first: int) -> None:
        """An attempt starts at batch `first`: everything that is queued from here on comes after `ahead`."""

    def post(self, batch: int, clock: StreamClock) -> None:
        """Queue the exchanges up to the last one of a batch, on streams of its own; see `stages.exchanges`."""

    def arrived(self, batch: int, ballots: torch.Tensor) -> None:
        """Have the current stream wait until all of the batch has arrived here."""

    def vote(self, batch: int, ballots: torch.Tensor) -> None:
        """Queue on the current stream: `ballots[batch]` is not 0 afterwards if it was 1 on any rank."""

    def settled(self, batch: int, committed: torch.cuda.Event) -> None:
        """This rank has committed the batch when `committed` has passed."""

    def join(self) -> None:
        """Have the current stream wait for everything that was queued."""

    def warm_up(self) -> None:
        """Do once what takes long the first time. All ranks call it."""


class DeviceLane:
    def __init__(
        self,
        program: Program,
        slots: Sequence[Sequence[torch.Tensor]],
        staging: Staging,
        transport: Transport,
        truth: Sums | None,
        on_commit: Commit,
        clock: StreamClock,
        hooks: Hooks,
        timeout_seconds: float,
    ) -> None:
        device = staging.data.device
        at = Addresses.of(slots, staging)
        self._program, self._staging, self._transport = program, staging, transport
        self._on_commit, self._clock, self._hooks, self._timeout = on_commit, clock, hooks, timeout_seconds
        self._writes = commit_tables(program.writes, at, staging, kernels.COPY_BYTES, device)
        self._hashes, self._lifeboat = None, None
        if truth is not None:
            self._lifeboat = Lifeboat(program, at, staging)
            self._hashes = hash_tables(program.arrivals, at, staging, truth, HASH_BYTES, device)
        self._checking, self._committing, self._reporting = stream(device, urgent=True), stream(device), stream(device)
        self._ballots = torch.zeros(max(1, len(program)), dtype=torch.int32, device=device)
        self._known = torch.zeros(max(1, len(program)), dtype=torch.int32, pin_memory=True)
        self._known_ballots = self._known.numpy()
        self._graph: torch.cuda.CUDAGraph | None = None
        self._recorded = self._read = -1
        self._compiled = False
        self.faults: list[Fault] = []

    def get_ready(self, first: int) -> None:
        """Compile all kernels, and record the attempt that starts at batch `first`."""
        if first == len(self._program):
            return
        self._compile(first)
        with self._recording(first):
            for batch in range(first, len(self._program)):
                self._queue(batch)
        self._recorded = first

    def _compile(self, batch: int) -> None:
        launch_copies(self._writes, batch, torch.ones_like(self._ballots))
        if self._lifeboat is not None:
            self._lifeboat.warm_up(self._ballots)
        if self._hashes is not None:
            self._hash(batch)
        self._transport.warm_up()
        self._clear()
        self._compiled = True

    def stage(self, batch: int) -> None:
        if not self._compiled:
            self._compile(batch)
            with torch.cuda.stream(self._checking):
                self._begin(batch)
        self.faults = []
        with torch.cuda.stream(self._checking):
            self._check(batch)
            self._known[batch : batch + 1].copy_(self._ballots[batch : batch + 1], non_blocking=True)

    def staged(self, batch: int) -> bool:
        return int(self._known_ballots[batch]) != OPEN

    def commit(self, batch: int) -> bool:
        """The current stream waits for the commit alone, not for what is on its way."""
        self._read = batch
        current = torch.cuda.current_stream()
        if not self._read_until(batch + 1):
            dist.barrier()
            self._clear()
            with torch.cuda.stream(self._checking):
                self._begin(batch)
            return False
        self._committing.wait_stream(current)
        self._commit(batch)
        current.wait_stream(self._committing)
        return True

    def drain(self) -> None:
        torch.cuda.synchronize(self._staging.data.device)

    @contextmanager
    def _recording(self, first: int) -> Iterator[None]:
        """What is queued within the block becomes the graph, ready to start."""
        self._graph = torch.cuda.CUDAGraph(keep_graph=True)
        with (
            no_garbage_collection(),
            torch.cuda.graph(self._graph, stream=self._checking, capture_error_mode="thread_local"),
        ):
            self._begin(first)
            yield
            self._transport.join()
            self._checking.wait_stream(self._committing)
            self._checking.wait_stream(self._reporting)
        self._graph.instantiate()
        upload(self._graph, self._checking)

    def _replay(self) -> None:
        assert self._graph is not None
        with torch.cuda.stream(self._checking):
            self._graph.replay()

    def attempt(self, first: int) -> int:
        self._read, self.faults = first, []
        if self._recorded == first:
            self._clock.start()
            self._replay()
            self._recorded, queued = -1, len(self._program)
        else:
            self._clear()
            queued = self._queue_all(first)
        if not self._read_until(queued):
            torch.cuda.synchronize(self._staging.data.device)
            if self._lifeboat is not None:
                self._lifeboat.bring_back(self._read, queued)
                torch.cuda.synchronize(self._staging.data.device)
            dist.barrier()  # nobody sends again what another is still looking at
        return self._read

    def _clear(self) -> None:
        """No batch is settled; the device is idle afterwards."""
        self._known.fill_(OPEN)
        self._ballots.zero_()
        torch.cuda.synchronize(self._staging.data.device)

    def _queue_all(self, first: int) -> int:
        """Queue batches until one is known not to be committed; how many are queued, the same on all ranks."""
        self._clock.restart()
        with torch.cuda.stream(self._checking):
            self._begin(first)
            for batch in range(first, len(self._program)):
                if batch - WINDOW >= first and not self._read_until(batch - WINDOW + 1):
                    return batch
                self._queue(batch)
        return len(self._program)

    def _begin(self, first: int) -> None:
        ahead = self._checking.record_event()
        self._committing.wait_event(ahead)
        self._reporting.wait_event(ahead)
        self._transport.begin(ahead, first)

    def _queue(self, batch: int) -> None:
        """One batch, from its first byte to its commit; the current stream is the one that checks."""
        self._check(batch)
        self._committing.wait_event(self._checking.record_event())
        committed = self._commit(batch)
        with torch.cuda.stream(self._reporting):
            self._reporting.wait_event(committed)
            self._known[batch : batch + 1].copy_(self._ballots[batch : batch + 1], non_blocking=True)

    def _check(self, batch: int) -> None:
        """From the first byte to the ballot."""
        self._hooks.before_send(batch)
        self._transport.post(batch, self._clock)
        with self._clock("wait", batch):
            self._transport.arrived(batch, self._ballots)
        self._hooks.after_arrival(batch, self._staging)
        if self._hashes is not None:
            with self._clock("hash", batch):
                self._hash(batch)
            with self._clock("wait", batch):
                self._transport.vote(batch, self._ballots)

    def _commit(self, batch: int) -> torch.cuda.Event:
        with torch.cuda.stream(self._committing):
            with self._clock("commit", batch):
                launch_copies(self._writes, batch, self._ballots)
                if self._lifeboat is not None:
                    self._lifeboat.save(batch, self._ballots)
            committed = self._committing.record_event()
        self._transport.settled(batch, committed)
        return committed

    def _read_until(self, batch: int) -> bool:
        """Wait for the ballots of the batches before `batch`; False if one says no."""
        patience = time.monotonic() + self._timeout
        while self._read < batch:
            ballot = int(self._known_ballots[self._read])
            if ballot == OPEN:
                if time.monotonic() > patience:
                    raise MoesaicError(f"batch {self._read} was not settled within {self._timeout:g} seconds")
                time.sleep(0)
                continue
            if ballot >= MISSED:
                raise MoesaicError(f"rank {ballot - MISSED} did not come to batch {self._read} in time")
            if ballot:
                self._find_faults(self._read)
                return False
            self._on_commit(self._read)
            self._read += 1
            patience = time.monotonic() + self._timeout
        return True

    def _hash(self, batch: int) -> None:
        tables = self._hashes
        assert tables is not None
        start, stop = tables.work.of_batch(batch)
        if start < stop:
            checksum_kernel.hash_rows[(stop - start,)](
                tables.work.items, start, tables.source, tables.nbytes, tables.columns, tables.factors, tables.sums,
                ALIGNED=tables.aligned, BLOCKS=HASH_BYTES // BLOCK, num_warps=checksum_kernel.HASH_WARPS,
            )  # fmt: skip
        kernels.judge[(1,)](
            tables.edges[batch], tables.edges[batch + 1], tables.sums, tables.nbytes, tables.truth, tables.found,
            self._ballots, batch, SIGNED_LENGTH, WIDTH=256, num_warps=4,
        )  # fmt: skip

    def _find_faults(self, batch: int) -> None:
        tables = self._hashes
        if tables is None:
            return
        torch.cuda.synchronize(self._staging.data.device)
        arrivals, count = self._program.arrivals.of(batch), len(self._staging.layout.nbytes)
        part = slice(tables.edges[batch], tables.edges[batch + 1])
        found, expected = (
            values[part].cpu().numpy().view(np.uint64).reshape(-1, count) for values in (tables.found, tables.truth)
        )
        self.faults = faults_of(batch, arrivals, expected, found)
