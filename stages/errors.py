"""What can go wrong, as three kinds that decide the exit code. Every message is one sentence a user can act on."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stages.contract import StageResult


class MoesaicError(Exception):
    """Something failed while doing what was asked for. `result` holds what the stage could still tell."""

    exit_code = 1

    def __init__(self, message: str, result: StageResult | None = None) -> None:
        super().__init__(message)
        self.result = result


ADVICE = {
    errno.ENOENT: "that file, or a folder on the way to it, is not there: check the path",
    errno.ENOTDIR: "a part of that path is a file: choose another folder",
    errno.EEXIST: "something of that name is there: choose another one",
    errno.EACCES: "choose a place that you may write to, or ask for the right to",
    errno.EPERM: "choose a place that you may write to, or ask for the right to",
    errno.EROFS: "that disk cannot be written to: choose a place on another one",
    errno.ENOSPC: "make room there, or choose another disk; the same command then continues",
    errno.EPIPE: "nobody reads what is written any more; the same command continues after the last stage",
    errno.EDQUOT: "your share of that disk is used up: make room, and the same command continues",
}
"""What a user can do about errors of the system."""


PREAMBLE = "(raised as a result of Query-invoked autoflush"
"""How a line of SQLAlchemy begins that says nothing; what went wrong follows it."""


def sentence_of(error: BaseException) -> str:
    """What went wrong, as one line for a person: the message of an error of ours, else the kind and the first line."""
    if isinstance(error, MoesaicError):
        return " ".join(str(error).split())
    if isinstance(error, KeyboardInterrupt):
        return "Interrupted: the stages that finished are kept, and the same command continues after them."
    if isinstance(error, MemoryError):
        told = f" ({' '.join(str(error).split())})" if str(error) else ""
        return f"There is not enough memory for this{told}: make it smaller, or take a machine with more."
    if isinstance(error, OSError) and error.strerror:
        file = error.filename2 or error.filename  # of two, the one that was written
        told = f"{error.strerror}: {file}" if file else error.strerror
        return f"{told} ({ADVICE[error.errno]})" if error.errno in ADVICE else told
    lines = [line for line in str(error).strip().splitlines() if not line.startswith(PREAMBLE)]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


class BadInput(MoesaicError):
    """A config value or an input file is wrong: the message names it, and what is allowed."""

    exit_code = 2


class Corruption(MoesaicError):
    """A weight is not the one that belongs there."""

    exit_code = 3
