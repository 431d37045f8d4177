"""What a search may spend, and the threads it spends it on."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Self, TypeVar

T = TypeVar("T")


class Clock:
    """Time for a search: `seconds` from now. `cut` says whether it stopped anything."""

    def __init__(self, seconds: float) -> None:
        self._end = time.perf_counter() + seconds
        self.cut = False

    def over(self) -> bool:
        """Whether the time is spent; whoever asks stops working then, so the search counts as cut."""
        if time.perf_counter() >= self._end:
            self.cut = True
        return self.cut

    def share(self, part: float) -> Clock:
        """A clock for `part` of the time that is left."""
        return Clock(max(0.0, (self._end - time.perf_counter()) * part))


class Crew:
    """A thread for each core that this process may use: kernels run side by side, since they release the GIL."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def each(self, work: Callable[[T], object], items: Iterable[T]) -> None:
        """Do `work` on every item; the first error is raised."""
        for _ in self._pool.map(work, items):
            pass
