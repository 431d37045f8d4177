"""Ranks that torchrun or Slurm started, each as a pipeline of its own: rank 0 drives, the others follow.

The pipeline of rank 0 may call `lead()` when it starts, gets to the update stage (`drive`) or does not, and calls
`release(exit_code)` at its very end. The pipeline of every other rank calls `follow(config)` in place of running, and
exits with the code that it returns. Importing this costs nothing; torch comes when a function needs it.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from stages.update.config import UpdateStageConfig
from stages.update.job import Job
from stages.update.machine import Machine
from stages.update.measured import Measured
from stages.update.progress_board import OnReport, silent
from stages.update.seat import find_seat

if TYPE_CHECKING:
    from stages.update.session import Session

_lock = threading.Lock()
_sessions: list[Session] = []


def is_attached(config: UpdateStageConfig | None = None) -> bool:
    """Did torchrun or Slurm start this process, and does the config not ask for ranks of its own?"""
    return find_seat() is not None and (config is None or config.update.ranks != "local")


def is_leader() -> bool:
    """Is this rank 0, or alone?"""
    seat = find_seat()
    return seat is None or seat.rank == 0


def lead() -> None:
    """Let the followers know that rank 0 lives, from a thread: they give up when it falls silent."""
    if is_attached() and is_leader():
        threading.Thread(target=_session, daemon=True, name="moesaic-lead").start()


def drive(config: UpdateStageConfig, job: Job, machine: Machine, on_report: OnReport = silent) -> Measured:
    """Run the update with all ranks; on rank 0."""
    return _session().drive(config, job, machine, on_report)


def follow(config: UpdateStageConfig) -> int:
    """Take part in what rank 0 drives until it releases its followers; the exit code to end with."""
    return _session().follow(config)


def release(exit_code: int) -> None:
    """Let the followers end with `exit_code`; on rank 0, once, and last of all. Does nothing elsewhere."""
    if is_attached() and is_leader():
        _session().release(exit_code)


def _session() -> Session:
    from stages.update.session import Session

    with _lock:
        if not _sessions:
            seat = find_seat()
            assert seat is not None
            _sessions.append(Session(seat))
        return _sessions[0]
