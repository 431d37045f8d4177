"""What runs the batches of one rank, on whatever does the work: the interface, and what goes through it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from stages.update.staging import Staging

if TYPE_CHECKING:
    from stages.update.program import Arrivals
    from stages.update.truth import Sums

if TYPE_CHECKING:
    from stages.update.program import Arrivals

Commit = Callable[[int], None]
"""Called with each batch that this rank has committed, in order."""


class Vote(IntEnum):
    """What a rank says of a batch; the largest counts."""

    commit = 0
    again = 1


@dataclass(frozen=True)
class Fault:
    """A tensor that arrived in `batch` from rank `sender` with a checksum that the expert's holders never had."""

    batch: int
    layer: int
    expert: int
    tensor: int
    sender: int
    expected: int
    found: int

    def numbers(self) -> list[int]:
        """The fields as signed 64-bit integers, which tensors can carry."""
        return np.array([astuple(self)], dtype=np.uint64).view(np.int64)[0].tolist()

    @classmethod
    def of(cls, numbers: npt.NDArray[np.int64]) -> Fault:
        """From what `numbers` gave."""
        return cls(*np.ascontiguousarray(numbers).view(np.uint64).tolist())


def faults_of(batch: int, arrivals: Arrivals, expected: Sums, found: Sums) -> list[Fault]:
    """Where `found` differs from `expected`, both `[n, K]` for the n arrivals of a batch."""
    return [
        Fault(
            batch=batch, layer=int(arrivals.layer[n]), expert=int(arrivals.expert[n]), tensor=int(k),
            sender=int(arrivals.peer[n]), expected=int(expected[n, k]), found=int(found[n, k]),
        )
        for n, k in np.argwhere(found != expected)
    ]  # fmt: skip


@dataclass(frozen=True)
class Hooks:
    """Where tests come in between: before a batch is sent; after it has arrived, before it is checked; after it has been
    committed and recorded.

    On a GPU the first two are called when the batch is queued, and queue their work on the current stream.
    """

    before_send: Callable[[int], None] = lambda batch: None
    after_arrival: Callable[[int, Staging], None] = lambda batch, staging: None
    after_commit: Callable[[int], None] = lambda batch: None


NO_HOOKS = Hooks()


@dataclass
class Spans:
    """(what, batch, begin, end): when a lane did what, in seconds since `origin`."""

    origin: float = field(default_factory=time.perf_counter)
    found: list[tuple[str, int, float, float]] = field(default_factory=list)

    @contextmanager
    def __call__(self, what: str, batch: int) -> Iterator[None]:
        begin = time.perf_counter() - self.origin
        yield
        self.found.append((what, batch, begin, time.perf_counter() - self.origin))


class Lane(Protocol):
    """Runs many batches in one attempt, or one batch at a time, which others do something between."""

    faults: list[Fault]
    """What arrived wrong in the batch at which the last attempt ended."""

    def get_ready(self, first: int) -> None:
        """Do beforehand what can be done of the attempt that starts at batch `first`. All ranks call it."""

    def stage(self, batch: int) -> None:
        """Start to send, receive and check one batch, and return."""

    def staged(self, batch: int) -> bool:
        """Has a batch arrived and been checked, so that its commit waits for nobody?"""

    def commit(self, batch: int) -> bool:
        """Commit a batch that is staged, when all ranks have found it right; False if they have not."""

    def drain(self) -> None:
        """Wait for what is on its way."""

    def attempt(self, first: int) -> int:
        """Run the batches from `first` on, all before being committed, until one is not; how many are committed, and done
        with on the device, then."""
