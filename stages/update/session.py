"""What attached ranks say to each other through a key-value store, and how they run an update together.

Keys, under one prefix a launch: `alive` (rank 0's heartbeat), `followers` (how many have come), `command/N` (what they
do next: `update` or `leave CODE`), `left` (how many have), and for an update N: `config/N/RANK`, `go/N`, `beat/N/RANK`,
`failure/N`, and the process group's own.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import threading
import time
from typing import TYPE_CHECKING

from stages.errors import BadInput, MoesaicError
from stages.update.config import UpdateStageConfig
from stages.update.failures import PEER_LOST, Death, as_raised, tidy
from stages.update.job import Job
from stages.update.machine import Machine
from stages.update.measured import Measured
from stages.update.network import network_defaults
from stages.update.progress_board import OnReport, ProgressBoard, silent
from stages.update.rank import abandon, joined
from stages.update.seat import Seat
from stages.update.stores import host_store, join_store, prefixed
from stages.update.watch import BEAT_SECONDS, BLAME_SECONDS, SILENCE_SECONDS, watched
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
        self._store = self._connect()
        self._number = 0
        self._ended = threading.Event()
        if seat.rank > 0:
            self._store.add("followers", 1)
        else:
            threading.Thread(target=self._keep_alive, daemon=True, name="moesaic-heartbeat").start()

    def drive(self, config: UpdateStageConfig, job: Job, machine: Machine, on_report: OnReport) -> Measured:
        """Rank 0: have all ranks run the update."""
        number = self._command("update")
        self._agree(number, config, machine)
        return self._take_part(number, config, machine, job, on_report)

    def follow(self, config: UpdateStageConfig) -> int:
        """Other ranks: obey commands until one says leave; its exit code."""
        try:
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
            self._store.set(f"config/{number}/{self._seat.rank}", answer)
            if self._await(f"go/{number}") == "yes" and machine is not None:
                try:
                    self._take_part(number, config, machine, None, silent)
                except MoesaicError:  # rank 0 raises the same and lets this rank leave with its exit code
                    continue

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
        return self._store.add("left", 0) >= came

    def _answer(self, config: UpdateStageConfig) -> tuple[str, Machine | None]:
        """What this rank has come with, as one word; or a sentence on why it cannot take part."""
        try:
            machine = config.machine()
        except BadInput as error:
            return str(error), None
        return _digest(config, machine), machine

    def _agree(self, number: int, config: UpdateStageConfig, machine: Machine) -> None:
        """Go on only if all ranks have come with the same config."""
        deadline = time.monotonic() + config.update.timeout_seconds
        own = _digest(config, machine)
        for rank in range(1, self._seat.ranks):
            key = f"config/{number}/{rank}"
            while not (there := self._store.check([key])) and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS)
            answer = self._store.get(key).decode() if there else ""
            if answer != own:
                self._store.set(f"go/{number}", "no")
                raise BadInput(_disagreement(rank, answer, config.update.timeout_seconds))
        self._store.set(f"go/{number}", "yes")

    def _take_part(
        self, number: int, config: UpdateStageConfig, machine: Machine, job: Job | None, on_report: OnReport
    ) -> Measured:
        seat, options = self._seat, config.update
        shared = seat.rank if options.oversubscribe and machine.backend == "nccl" else None
        loopback = seat.hosts == 1 or seat.address in ("localhost", "127.0.0.1", "::1")
        os.environ.update(network_defaults(loopback=loopback, shared_gpu_rank=shared))
        board = ProgressBoard(None, seat.ranks, on_report)
        try:
            with (
                watched(number, seat, board, self._connect()),
                joined(
                    prefixed(f"group/{number}", self._connect()),
                    seat.rank,
                    seat.ranks,
                    backend=machine.backend,
                    local_rank=seat.local_rank,
                    timeout_seconds=options.timeout_seconds,
                    board=board,
                ) as rank,
            ):
                data = rank.broadcast(None if job is None else job.to_bytes())
                return update_rank(rank, config, job or Job.from_bytes(data))
        except Exception as error:
            cause = self._blame(number, board, error)
            raise as_raised(cause) or MoesaicError(cause) from error

    def _blame(self, number: int, board: ProgressBoard, error: Exception) -> str:
        """End update `number` for all ranks; the one sentence on why, which the rank that failed first has said."""
        phase, layer, _ = board.of(self._seat.rank)
        said = f"{type(error).__name__}: {error}"
        own = said if as_raised(said) else str(Death(self._seat.rank, None, phase, layer, error=said))
        key = f"failure/{number}"
        lost_peer = PEER_LOST.search(own) is not None
        if not lost_peer:
            self._store.compare_set(key, "", own)
        abandon()
        deadline = time.monotonic() + BLAME_SECONDS
        while lost_peer and not self._store.check([key]) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        return self._store.compare_set(key, "", own).decode()

    def _command(self, words: str) -> int:
        number = self._number
        self._number += 1
        self._store.set(f"command/{number}", words)
        return number

    def _await(self, key: str) -> str:
        """The value of `key`, once it is there. Raises `MoesaicError` when rank 0 falls silent before."""
        last, at = b"", time.monotonic()
        while not self._store.check([key]):
            beat = self._store.get("alive") if self._store.check(["alive"]) else b""
            if beat != last:
                last, at = beat, time.monotonic()
            patience = SILENCE_SECONDS if beat else FIRST_CONTACT_SECONDS
            if time.monotonic() - at > patience:
                raise MoesaicError(f"Rank 0 has not been heard for {patience:g} seconds: rank {self._seat.rank} ends.")
            time.sleep(POLL_SECONDS)
        return self._store.get(key).decode()

    def _keep_alive(self) -> None:
        store = self._connect()
        while not self._ended.wait(BEAT_SECONDS):
            store.set("alive", str(time.monotonic_ns()))

    def _host(self) -> Store:
        try:
            return host_store(self._seat.port)
        except RuntimeError as error:
            raise MoesaicError(f"Rank 0 cannot listen on MASTER_PORT={self._seat.port}: {error}") from error

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


def _digest(config: UpdateStageConfig, machine: Machine) -> str:
    """What all ranks must agree on, as one word."""
    facts = [config.key_config(), machine.backend, machine.torch, machine.nccl, machine.transport]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _disagreement(rank: int, answer: str, timeout_seconds: float) -> str:
    if not answer:
        return f"Rank {rank} did not come to the update within update.timeout_seconds={timeout_seconds:g}."
    if " " in answer:
        return f"Rank {rank} cannot take part: {answer}"
    return (
        f"Rank {rank} has another config of update, model, topology or seed, or another version of torch or NCCL, than "
        "rank 0: start all ranks with the same command in the same environment."
    )


def _listens(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), timeout=2).close()
    except OSError:
        return False
    return True
