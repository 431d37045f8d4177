"""Why an update of attached ranks ended: found out between the ranks that can still say something."""

from __future__ import annotations

import time

from stages.update.failures import PEER_LOST, TIMED_OUT, Death, Failure, as_raised, silence
from stages.update.progress_board import ProgressBoard
from stages.update.rank import abandon
from stages.update.seat import Seat
from stages.update.stores import Line
from stages.update.watch import BLAME_SECONDS, beats, doing

POLL_SECONDS = 0.1


def blame(store: Line, number: int, seat: Seat, board: ProgressBoard, error: BaseException) -> Failure | None:
    """End update `number` for all ranks, and find out why it ended; None if this rank alone is to end.

    The rank that failed first has said so. Where others have only lost their peers, those that say nothing at all are
    the cause: a launcher that finds one of its ranks dead ends the others at once (`error` may be its SIGTERM).
    """
    key = f"failure/{number}"
    phase, layer, _ = board.of(seat.rank)
    said = f"{type(error).__name__}: {error}"
    own = Failure(said if as_raised(said) else str(Death(seat.rank, None, phase, layer, error=said)))
    stopped = not isinstance(error, Exception)
    timed_out = TIMED_OUT.search(said) is not None
    if not (stopped or timed_out or PEER_LOST.search(said)):
        store.compare_set(key, "", own.to_text())
    store.set(f"out/{number}/{seat.rank}", "")
    abandon()
    others = [rank for rank in range(seat.ranks) if rank != seat.rank]
    before = beats(store, number, others)
    _wait_for(store, key, BLAME_SECONDS if seat.rank == 0 else 2 * BLAME_SECONDS)
    if not store.check(key):
        now = beats(store, number, others)
        quiet = [rank for rank in others if now[rank] == before[rank] and not store.check(f"out/{number}/{rank}")]
        if quiet:
            store.compare_set(key, "", silence(quiet, doing(now[quiet[0]]), timed_out).to_text())
        elif stopped:
            return None
    return Failure.from_text(store.compare_set(key, "", own.to_text()))


def _wait_for(store: Line, key: str, seconds: float) -> None:
    """Until `key` is there, or so long. What a signal raises meanwhile is dropped: the launcher ends all ranks when one
    has died, and gives them time for this."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if store.check(key):
                return
            time.sleep(POLL_SECONDS)
        except Exception:
            raise
        except BaseException:
            continue
