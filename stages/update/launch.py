"""Starts local ranks through torch elastic, watches them, and leaves none behind.

The ranks are forked from a server that has imported torch already, so that eight start in seconds. They end with this
process however it ends: each watches it, and the server goes when this process and the ranks have gone.
"""

from __future__ import annotations

import logging
import multiprocessing
import multiprocessing.forkserver
import os
import signal
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.errors import MoesaicError
from stages.temporary import temporary_folder
from stages.update.failures import TIMED_OUT, Death, RanksLost, as_raised, recorded_error, root_cause
from stages.update.machine import cores
from stages.update.network import network_defaults
from stages.update.progress_board import OnReport, ProgressBoard, silent, where
from stages.update.seat import LocalSeat

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

    from torch.distributed.elastic.multiprocessing import PContext

POLL_SECONDS = 0.05
SETTLE_SECONDS = 0.3
"""How long the other ranks get to show what ended them once one is dead, and again when one more is."""
CLOSE_SECONDS = 3
ELASTIC_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
ELASTIC_LOGGERS = ("torch.distributed.elastic.multiprocessing.api", "torch.multiprocessing.spawn")


def launch(
    entry: Callable[..., None],
    args: tuple[object, ...],
    ranks: int,
    *,
    backend: str = "gloo",
    timeout_seconds: float = 120.0,
    oversubscribe: bool = False,
    on_report: OnReport = silent,
) -> None:
    """Call `entry(rank: Rank, *args)` in `ranks` processes that form one process group, and wait for all of them.

    Raises `MoesaicError` with the rank, the layer and the cause when one of them fails; then all have been stopped.
    `entry` and `args` must be picklable, and the module of `entry` importable.
    """
    start_server()
    from stages.update.stores import loopback_store

    with (
        temporary_folder("ranks") as folder,
        _quiet_elastic(),
        loopback_store() as port,
    ):
        board = ProgressBoard(folder / "board", ranks)
        shared_gpus = oversubscribe and backend == "nccl"
        seats = [LocalSeat(rank, ranks, backend, port, timeout_seconds, folder / "board") for rank in range(ranks)]
        context = _start(entry, args, seats, folder, shared_gpus)
        try:
            _watch(context, board, on_report)
        finally:
            context.close(signal.SIGTERM, timeout=CLOSE_SECONDS)
            for file in context._pc.error_files:  # type: ignore[attr-defined]
                Path(file).unlink(missing_ok=True)  # torch leaves those of ranks that failed


def start_server() -> None:
    """Start the server that ranks are forked from, if it does not run yet; it imports torch in the background."""
    multiprocessing.set_forkserver_preload(["stages.update.server"])
    multiprocessing.forkserver.ensure_running()


def _start(
    entry: Callable[..., None], args: tuple[object, ...], seats: list[LocalSeat], folder: Path, shared_gpus: bool
) -> PContext:
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std, start_processes

    from stages.update.process import run_rank

    common = {**os.environ, "OMP_NUM_THREADS": str(max(1, cores() // len(seats)))}
    handlers = _signal_handlers()
    earlier = multiprocessing.active_children()
    try:
        with _hidden_main():
            return start_processes(
                name="rank",
                entrypoint=run_rank,
                args={seat.rank: (entry, args, seat) for seat in seats},
                envs={
                    seat.rank: common
                    | network_defaults(loopback=True, shared_gpu_rank=seat.rank if shared_gpus else None)
                    for seat in seats
                },
                logs_specs=DefaultLogsSpecs(log_dir=str(folder), redirects=Std.ALL),
                start_method="forkserver",
            )
    except BaseException as error:  # elastic loses sight of ranks that it was still starting
        for child in multiprocessing.active_children():
            if child not in earlier:
                child.kill()
                child.join(CLOSE_SECONDS)
        if not isinstance(error, SignalException):
            raise
        received = error.sigval
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    signal.raise_signal(received)
    raise MoesaicError(f"The start of the ranks was interrupted by {received.name}.")


def _watch(context: PContext, board: ProgressBoard, on_report: OnReport) -> None:
    """Until all ranks have finished; raises when one fails.

    Ranks end only after all have finished, so that an end before is a failure. torch elastic would stop the others at
    once, and wait long for those that do not answer: here they first get a moment to show what happened to them.
    """
    processes = context._pc.processes  # type: ignore[attr-defined]
    said = None
    while True:
        if any(process.exitcode is not None for process in processes):
            _settle(processes)
            raise _failure([process.exitcode for process in processes], context, board)
        result = context.wait(timeout=0)
        if result is not None:
            if result.is_failed():  # one died since the look above, and elastic has stopped the others
                stopped = -signal.SIGTERM
                codes = [process.exitcode for process in processes]
                raise _failure([code if code != stopped else None for code in codes], context, board)
            return
        if (now := board.overall()) != said:
            on_report(now)
            said = now
        time.sleep(POLL_SECONDS)


def _settle(processes: Sequence[BaseProcess]) -> None:
    """Until none has ended for a moment."""
    ended, before = 1, 0
    while ended > before:
        time.sleep(SETTLE_SECONDS)
        before, ended = ended, sum(process.exitcode is not None for process in processes)


def _failure(codes: list[int | None], context: PContext, board: ProgressBoard) -> MoesaicError:
    """One sentence on the rank that ended first, from the exit codes of all (None: still runs); details as a note."""
    deaths = []
    for rank, code in enumerate(codes):
        phase, layer, failed_at = board.of(rank)
        error, traceback = recorded_error(Path(context.error_files[rank]))
        if code is not None or error:
            deaths.append(Death(rank, code, phase, layer, failed_at, error, traceback))
    if not deaths:
        return MoesaicError("A rank ended by SIGTERM.")
    cause = root_cause(deaths)
    silent_ranks = [rank for rank in range(len(codes)) if rank not in {death.rank for death in deaths}]
    file = Path(context.stderrs[cause.rank])
    log = file.read_text(encoding="utf-8", errors="replace") if file.exists() else ""
    sentence, lost = str(cause), [death.rank for death in deaths if not death.error]
    gave_up = cause.signal_name == "SIGABRT" and TIMED_OUT.search(log)  # as NCCL's watchdog does
    if gave_up:
        sentence, lost = f"rank {cause.rank} gave up waiting {where(cause.phase, cause.layer)}", []
    if gave_up or TIMED_OUT.search(cause.error):
        sentence += _silence(silent_ranks, board)
        lost += silent_ranks
    failure = as_raised(cause.error) or (RanksLost(sentence, lost) if lost else MoesaicError(sentence))
    failure.add_note(cause.traceback or "\n".join(log.splitlines()[-20:]))
    return failure


def _silence(ranks: list[int], board: ProgressBoard) -> str:
    """Which ranks neither ended nor said anything while another waited for them in vain."""
    if not ranks:
        return ""
    phase, layer, _ = board.of(ranks[0])
    names = ", ".join(map(str, ranks))
    return f"; rank {names} did not answer: last seen {where(phase, layer)}"


@contextmanager
def _hidden_main() -> Iterator[None]:
    """Within the block new processes do not import this program's main module: ranks have no need of it."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextmanager
def _quiet_elastic() -> Iterator[None]:
    """Within the block torch elastic logs nothing: what it has to say is in the error that `launch` raises."""
    loggers = [logging.getLogger(name) for name in ELASTIC_LOGGERS]
    before = [logger.disabled for logger in loggers]
    try:
        for logger in loggers:
            logger.disabled = True
        yield
    finally:
        for logger, disabled in zip(loggers, before, strict=True):
            logger.disabled = disabled


def _signal_handlers() -> dict[signal.Signals, Any]:
    """The handlers that torch elastic replaces when it starts processes from the main thread."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.getsignal(number) or signal.SIG_DFL for number in ELASTIC_SIGNALS}
