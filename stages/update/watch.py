"""A thread beside an update of attached ranks: each says what it does, and learns when another has failed."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from stages.update.progress_board import ProgressBoard, where
from stages.update.rank import abandon
from stages.update.seat import Seat

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

BEAT_SECONDS = 0.5
SILENCE_SECONDS = 60.0
"""How long a rank that has been heard may say nothing before it counts as gone."""
BLAME_SECONDS = 3.0
"""How long a rank that lost its peers waits for the one that failed first to say so."""


@contextmanager
def watched(number: int, seat: Seat, board: ProgressBoard, store: Store) -> Iterator[None]:
    """Within the block, which is update `number`, the thread runs. When another rank has failed it ends the waiting of
    this one: NCCL would wait for its timeout; gloo notices the closed connections too. `store` is the thread's own."""
    done = threading.Event()
    watch = Watch(number, seat, board, store)

    def run() -> None:
        while not done.wait(BEAT_SECONDS):
            if watch.failed() and not done.wait(BLAME_SECONDS):
                abandon()
                return

    thread = threading.Thread(target=run, daemon=True, name="moesaic-watch")
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(BEAT_SECONDS + BLAME_SECONDS)


class Watch:
    """What the thread beside an update looks at."""

    def __init__(self, number: int, seat: Seat, board: ProgressBoard, store: Store) -> None:
        self._number = number
        self._seat = seat
        self._board = board
        self._store = store
        self._ticks = 0
        self._heard = {rank: ("", time.monotonic()) for rank in range(seat.ranks) if rank != seat.rank}

    def failed(self) -> bool:
        """Say what this rank does; has another rank failed, or, as rank 0 sees it, fallen silent?"""
        phase, layer, _ = self._board.of(self._seat.rank)
        self._ticks += 1
        key = f"failure/{self._number}"
        try:
            self._store.set(f"beat/{self._number}/{self._seat.rank}", f"{self._ticks} {where(phase, layer)}")
            if self._seat.rank == 0:
                self._listen(key)
            return self._store.check([key])
        except RuntimeError:
            return True

    def _listen(self, key: str) -> None:
        for rank, (last, at) in self._heard.items():
            beat = f"beat/{self._number}/{rank}"
            now = self._store.get(beat).decode() if self._store.check([beat]) else ""
            if now != last:
                self._heard[rank] = (now, time.monotonic())
            elif time.monotonic() - at > SILENCE_SECONDS:
                doing = now.partition(" ")[2] or "before its start"
                self._store.compare_set(
                    key, "", f"rank {rank} has not been heard for {SILENCE_SECONDS:g} s, last {doing}"
                )
