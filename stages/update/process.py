"""The process of one local rank. Forked from a server that has imported this module, and torch with it."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable

from stages.update.progress_board import ProgressBoard
from stages.update.rank import joined, limit_threads
from stages.update.seat import LocalSeat
from stages.update.stores import join_store

PR_SET_PDEATHSIG = 1


def run_rank(entry: Callable[..., None], args: tuple[object, ...], seat: LocalSeat) -> None:
    """Call `entry(rank, *args)` as a member of the process group. What it raises, the caller of the ranks reports."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the parent answers it
    limit_threads(seat.ranks)
    board = ProgressBoard(seat.board, seat.ranks)
    try:
        store = join_store("127.0.0.1", seat.port, seat.timeout_seconds)
        with joined(
            store,
            seat.rank,
            seat.ranks,
            backend=seat.backend,
            local_rank=seat.rank,
            timeout_seconds=seat.timeout_seconds,
            board=board,
        ) as rank:
            entry(rank, *args)
    except BaseException:
        board.report_failure(seat.rank)
        raise


def die_with_parent() -> None:
    """Have the kernel end this process with the server that forked it, and a thread with the process that asked."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True, name="parent-watch").start()
