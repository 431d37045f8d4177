"""Which of several dead ranks was the first cause, and how to say it in one sentence."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stages.errors import BadInput, Corruption, MoesaicError
from stages.update.progress_board import STEPS, Phase, where

if TYPE_CHECKING:
    from stages.contract import StageResult

PEER_LOST = re.compile(
    r"connection (closed|reset|refused)|broken pipe|socket|recvvalue|sendbytes|remote process exited|"
    r"ncclremoteerror|ncclsystemerror|nccl communicator was aborted|abort",
    re.IGNORECASE,
)
"""What a rank says when another one went away: a consequence, not a cause."""


class RanksLost(MoesaicError):
    """`ranks` died, or fell silent, and what they held is gone with them."""

    def __init__(self, message: str, ranks: Sequence[int], result: StageResult | None = None) -> None:
        super().__init__(message, result)
        self.ranks = tuple(ranks)


TIMED_OUT = re.compile(r"timed out|timeout", re.IGNORECASE)
SOURCE_PLACE = re.compile(r"\[?/?[\w./-]+\.(cc|cpp|h|hpp):\d+\]?,?\s*")
ADVICE = re.compile(r"\s*This is typically caused by.*$", re.DOTALL)
LONGEST = 400


def tidy(error: str) -> str:
    """An error of torch on one line, without places in its C++ sources and general advice."""
    line = " ".join(SOURCE_PLACE.sub("", ADVICE.sub("", error)).split())
    return line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"


@dataclass(frozen=True)
class Death:
    """How one rank ended. `exit_code`: negative for a signal. `failed_at`: when it raised `error` (0: it did not)."""

    rank: int
    exit_code: int | None
    phase: Phase
    layer: int
    failed_at: int = 0
    error: str = ""
    traceback: str = ""

    @property
    def signal_name(self) -> str:
        code = -(self.exit_code or 0)
        try:
            return signal.Signals(code).name if code > 0 else ""
        except ValueError:
            return f"signal {code}"

    def __str__(self) -> str:
        if self.error:
            said = tidy(self.error.removeprefix(f"{MoesaicError.__name__}: "))
            return f"rank {self.rank} failed {where(self.phase, self.layer)}: {said}"
        place = where(self.phase, self.layer) + (" of the update" if self.phase in STEPS else "")
        if self.signal_name:
            return f"rank {self.rank} was killed by {self.signal_name} {place}"
        return f"rank {self.rank} ended with exit code {self.exit_code} {place}"


def as_raised(error: str) -> MoesaicError | None:
    """The error itself where a rank found that input or weights are bad, which has nothing to do with the rank."""
    name, _, message = error.partition(": ")
    kinds = {kind.__name__: kind for kind in (BadInput, Corruption)}
    return kinds[name](message) if name in kinds else None


@dataclass(frozen=True)
class Failure:
    """Why an update of attached ranks ended, which all of them say alike. `lost`: ranks that died or fell silent."""

    sentence: str
    lost: tuple[int, ...] = ()

    def to_text(self) -> str:
        return json.dumps([self.sentence, self.lost])

    @classmethod
    def from_text(cls, text: str) -> Failure:
        sentence, lost = json.loads(text)
        return cls(sentence, tuple(lost))

    def error(self) -> MoesaicError:
        lost = RanksLost(self.sentence, self.lost) if self.lost else None
        return as_raised(self.sentence) or lost or MoesaicError(self.sentence)


def silence(ranks: Sequence[int], doing: str, timed_out: bool) -> Failure:
    """Of `ranks` that say nothing any more, while others have lost them or, `timed_out`, waited for them in vain."""
    names = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks[:-1]))} and {ranks[-1]}"
    gone = "is gone" if len(ranks) == 1 else "are gone"
    return Failure(f"{names} {'did not answer in time' if timed_out else gone}: last seen {doing}", tuple(ranks))


def root_cause(deaths: Sequence[Death]) -> Death:
    """The death that explains the others: a signal from outside, then the earliest error that is no consequence, then
    an end without a word or an abort (which a lost peer can bring about too), then the earliest error of all."""

    def order(death: Death) -> tuple[int, int, int]:
        if death.error:
            return (3 if PEER_LOST.search(death.error) else 1, death.failed_at, death.rank)
        killed = death.signal_name not in ("", "SIGABRT")
        return (0 if killed else 2, 0, death.rank)

    return min(deaths, key=order)


def recorded_error(path: Path) -> tuple[str, str]:
    """Error (`TypeName: message`) and traceback in a file written by torch elastic's `record`; empty without one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))["message"]
        return str(value["message"]), str(value["extraInfo"]["py_callstack"])
    except (OSError, ValueError, KeyError, TypeError):
        return "", ""
