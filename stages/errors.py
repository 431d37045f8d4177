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


class BadInput(MoesaicError):
    """A config value or an input file is wrong: the message names it, and what is allowed."""

    exit_code = 2


class Corruption(MoesaicError):
    """A weight is not the one that belongs there."""

    exit_code = 3
