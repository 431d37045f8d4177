"""What can go wrong, as three kinds that decide the exit code. Every message is one sentence a user can act on."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stages.contract import StageResult


class MoesaicError(Exception):
    """Something failed while doing what was asked for. `result` holds what the stage could still tell."""

    exit_code = 1

    def __init__(self, message: str, result: StageResult | None = None) -> None:
        super().__init__(message)
        self.result = result


def sentence_of(error: BaseException) -> str:
    """What went wrong, as one line for a person: the message of an error of ours, else the kind and the first line."""
    if isinstance(error, MoesaicError):
        return " ".join(str(error).split())
    if isinstance(error, KeyboardInterrupt):
        return "Interrupted: the stages that finished are kept, and the same command continues after them."
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


class BadInput(MoesaicError):
    """A config value or an input file is wrong: the message names it, and what is allowed."""

    exit_code = 2


class Corruption(MoesaicError):
    """A weight is not the one that belongs there."""

    exit_code = 3
