"""What attached ranks say to each other through a key-value store, and how they run an update together.

Keys, under one prefix a launch: `alive` (rank 0's heartbeat), `followers` (how many have come), `command/N` (what they
do next: `update` or `leave CODE`), `left` (how many have), and for an update N: `facts/N/RANK`, `go/N`, `beat/N/RANK`,
`out/N/RANK` (a rank that failed lives), `failure/N`, and the process group's own.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from stages.errors import BadInput, MoesaicError
from stages.update.agreement import disagreement, facts
from stages.update.blame import blame
from stages.update.config import UpdateStageConfig
from stages.update.failures import RanksLost, tidy
from stages.update.job import Job
from stages.update.machine import Machine
from stages.update.measured import Measured
from stages.update.network import network_defaults
from stages.update.progress_board import OnReport, ProgressBoard, silent
from stages.update.rank import abandon, joined
from stages.update.seat import Seat
from stages.update.stores import Line, host_store, join_store, prefixed
from stages.update.watch import BEAT_SECONDS, SILENCE_SECONDS, watched
from stages.update.worker import update_rank

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

FIRST_CONTACT_SECONDS = 1800.0
"""How long followers wait for rank 0 to be heard at all: it may collect and place before it comes here."""
POLL_SECONDS = 0.1
LEAVE_SECONDS = 10.0
IO_SECONDS = 300.0


class Session:
    """One rank's end of the conversation. Made on every rank, once."""

    def __init__(self, seat: Seat) -> None:
        self._seat = seat
        self._hosted: Store | None = None
        if seat.rank == 0 and not seat.agent_store:
            self._hosted = self._host()
        self._patience = SILENCE_SECONDS
        self._store = self._line()
        self._number = 0
        self._lost: set[int] = set()
        self._ended = threading.Event()
        if seat.rank > 0:
            self._store.add("followers", 1)
        else:
            threading.Thread(target=self._keep_alive, daemon=True, name="moesaic-heartbeat").start()

    def drive(self, config: UpdateStageConfig, job: Job, machine: Machine, on_report: OnReport) -> Measured:
        """Rank 0: have all ranks run the update."""
        self._patience = self._store.patience = config.update.timeout_seconds
        number = self._command("update")
        self._agree(number, config, machine)
        return self._take_part(number, config, machine, job, on_report)

    def follow(self, config: UpdateStageConfig) -> int:
        """Other ranks: obey commands until one says leave; its exit code."""
        self._patience = self._store.patience = config.update.timeout_seconds
        try:
            with _sigterm_raises():
                return self._obey(config)
        except RuntimeError as error:  # of the store
            raise MoesaicError(f"Rank 0 is gone: rank {self._seat.rank} ends ({tidy(str(error))}).") from error

    def _obey(self, config: UpdateStageConfig) -> int:
        while True:
            number = self._number
            self._number += 1
            word, *rest = self._await(f"command/{number}").split()
            if word == "leave":
                self._store.add("left", 1)
                return int(rest[0])
            answer, machine = self._answer(config)
            self._store.set(f"facts/{number}/{self._seat.rank}", json.dumps(answer))
            if self._await(f"go/{number}") == "yes" and machine is not None:
                try:
                    self._take_part(number, config, machine, None, silent)
                except MoesaicError as error:  # rank 0 raises the same and lets this rank leave with its exit code
                    if isinstance(error, RanksLost) and 0 in error.ranks:
                        raise

    def release(self, exit_code: int) -> None:
        """Rank 0: let the others leave, and wait a moment until they have: its own store ends with it."""
        abandon()  # an update that was interrupted still keeps them
        self._command(f"leave {exit_code}")
        deadline = time.monotonic() + LEAVE_SECONDS
        while not self._all_left() and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        self._ended.set()

    def _all_left(self) -> bool:
        came = self._store.add("followers", 0) if self._seat.agent_store else self._seat.ranks - 1
        return self._store.add("left", 0) >= came - len(self._lost)

    def _answer(self, config: UpdateStageConfig) -> tuple[dict[str, str], Machine | None]:
        """What this rank has come with; or a sentence on why it cannot take part."""
        try:
            machine = config.machine()
        except BadInput as error:
            return {"refused": str(error)}, None
        return facts(config, machine), machine

    def _agree(self, number: int, config: UpdateStageConfig, machine: Machine) -> None:
        """Go on only if all ranks have come with the same config and code."""
        deadline = time.monotonic() + config.update.timeout_seconds
        ours = facts(config, machine)
        for rank in range(1, self._seat.ranks):
            key = f"facts/{number}/{rank}"
            while not (there := self._store.check(key)) and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS)
            theirs = json.loads(self._store.get(key)) if there else {}
            if not there:
                objection = f"Rank {rank} did not come to the update within update.timeout_seconds={config.update.timeout_seconds:g}."
            elif "refused" in theirs:
                objection = f"Rank {rank} cannot take part: {theirs['refused']}"
            else:
                objection = disagreement(rank, theirs, ours)
            if objection:
                self._store.set(f"go/{number}", "no")
                raise BadInput(objection)
        self._store.set(f"go/{number}", "yes")

    def _take_part(
        self, number: int, config: UpdateStageConfig, machine: Machine, job: Job | None, on_report: OnReport
    ) -> Measured:
        seat, options = self._seat, config.update
        shared = seat.rank if options.oversubscribe and machine.backend == "nccl" else None
        loopback = seat.hosts == 1 or seat.address in ("localhost", "127.0.0.1", "::1")
        os.environ.update(network_defaults(loopback=loopback, shared_gpu_rank=shared, meeting_place=seat.address))
        board = ProgressBoard(None, seat.ranks, on_report)
        with watched(number, seat, board, self._line()):
            try:
                with joined(
                    prefixed(f"group/{number}", self._connect()),
                    seat.rank,
                    seat.ranks,
                    backend=machine.backend,
                    local_rank=seat.local_rank,
                    timeout_seconds=options.timeout_seconds,
                    board=board,
                ) as rank:
                    data = rank.broadcast(None if job is None else job.to_bytes())
                    return update_rank(rank, config, job or Job.from_bytes(data))
            except KeyboardInterrupt:
                raise
            except BaseException as error:
                failure = blame(self._store, number, seat, board, error)
                if failure is None:
                    raise
                self._lost.update(failure.lost)
                raise failure.error() from error

    def _command(self, words: str) -> int:
        number = self._number
        self._number += 1
        self._store.set(f"command/{number}", words)
        return number

    def _await(self, key: str) -> str:
        """The value of `key`, once it is there. Raises `MoesaicError` when rank 0 falls silent before."""
        last, at = "", time.monotonic()
        while not self._store.check(key):
            beat = self._store.get("alive") if self._store.check("alive") else ""
            if beat != last:
                last, at = beat, time.monotonic()
            patience = SILENCE_SECONDS if beat else FIRST_CONTACT_SECONDS
            if time.monotonic() - at > patience:
                raise MoesaicError(f"Rank 0 has not been heard for {patience:g} seconds: rank {self._seat.rank} ends.")
            time.sleep(POLL_SECONDS)
        return self._store.get(key)

    def _keep_alive(self) -> None:
        store = self._line()
        while not self._ended.wait(BEAT_SECONDS):
            store.set("alive", str(time.monotonic_ns()))

    def _host(self) -> Store:
        try:
            return host_store(self._seat.port)
        except RuntimeError as error:
            raise MoesaicError(f"Rank 0 cannot listen on MASTER_PORT={self._seat.port}: {error}") from error

    def _line(self) -> Line:
        return Line(self._connect(), f"{self._seat.address}:{self._seat.port}", self._patience)

    def _connect(self) -> Store:
        """A connection of its own: a thread that waits on one holds up all others that use it."""
        seat = self._seat
        deadline = time.monotonic() + FIRST_CONTACT_SECONDS
        while not _listens(seat.address, seat.port):
            if time.monotonic() > deadline:
                raise MoesaicError(
                    f"Nobody has listened on {seat.address}:{seat.port} for {FIRST_CONTACT_SECONDS:g} seconds, where "
                    f"rank 0 should be: rank {seat.rank} ends."
                )
            time.sleep(POLL_SECONDS * 5)
        return prefixed(f"moesaic/{seat.restart}", join_store(seat.address, seat.port, IO_SECONDS))


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Within the block SIGTERM raises `SystemExit`, so that a rank can still say that it lives. In the main thread alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _listens(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), timeout=2).close()
    except OSError:
        return False
    return True
