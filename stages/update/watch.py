"""A thread beside an update of attached ranks: each says what it does, and learns when another has failed."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from stages.update.failures import Failure
from stages.update.progress_board import ProgressBoard, where
from stages.update.rank import abandon
from stages.update.seat import Seat

if TYPE_CHECKING:
    from stages.update.stores import Line

BEAT_SECONDS = 0.5
NOTHING = ""
"""The beat of a rank that has not been heard."""
SILENCE_SECONDS = 60.0
"""How long a rank that has been heard may say nothing before it counts as gone."""
BLAME_SECONDS = 3.0
"""How long a rank that lost its peers waits for the one that failed first to say so."""


@contextmanager
def watched(number: int, seat: Seat, board: ProgressBoard, store: Line) -> Iterator[None]:
    """Within the block, which is update `number`, the thread runs. When another rank has failed it ends the waiting of
    this one: NCCL would wait for its timeout; gloo notices the closed connections too. `store` is the thread's own."""
    done = threading.Event()
    watch = Watch(number, seat, board, store)

    def run() -> None:
        while not watch.failed():
            if done.wait(BEAT_SECONDS):
                return
        if not done.wait(BLAME_SECONDS):
            abandon()

    thread = threading.Thread(target=run, daemon=True, name="moesaic-watch")
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(BEAT_SECONDS + BLAME_SECONDS)


class Watch:
    """What the thread beside an update looks at."""

    def __init__(self, number: int, seat: Seat, board: ProgressBoard, store: Line) -> None:
        self._number = number
        self._seat = seat
        self._board = board
        self._store = store
        self._ticks = 0
        self._heard = {rank: (NOTHING, time.monotonic()) for rank in range(seat.ranks) if rank != seat.rank}

    def failed(self) -> bool:
        """Say what this rank does; has another rank failed, or, as rank 0 sees it, fallen silent?"""
        phase, layer, _ = self._board.of(self._seat.rank)
        self._ticks += 1
        key = f"failure/{self._number}"
        try:
            self._store.set(f"beat/{self._number}/{self._seat.rank}", f"{self._ticks} {where(phase, layer)}")
            if self._seat.rank == 0:
                self._listen(key)
            return self._store.check(key)
        except RuntimeError:
            return True

    def _listen(self, key: str) -> None:
        for rank, now in beats(self._store, self._number, self._heard).items():
            last, at = self._heard[rank]
            if now != last:
                self._heard[rank] = (now, time.monotonic())
            elif time.monotonic() - at > SILENCE_SECONDS:
                said = Failure(f"rank {rank} has not been heard for {SILENCE_SECONDS:g} s, last {doing(now)}", (rank,))
                self._store.compare_set(key, "", said.to_text())


def beats(store: Line, number: int, ranks: Iterable[int]) -> dict[int, str]:
    """What each of `ranks` has said last in update `number`."""
    keys = {rank: f"beat/{number}/{rank}" for rank in ranks}
    return {rank: store.get(key) if store.check(key) else NOTHING for rank, key in keys.items()}


def doing(beat: str) -> str:
    """What the rank did then."""
    return beat.partition(" ")[2] or "before its start"
