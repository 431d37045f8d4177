"""A process that runs points of a sweep for the one that launched it: it ends when that is gone, after the point that it
is at. Workers of a pool would wait for more, or for somebody who reads their answer."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.garbage import seldom_collected

LOOK_SECONDS = 1.0
KNOWN = (None, "fork", "spawn", "forkserver")

_launched_by = os.getppid()
_at_work = threading.RLock()
_watching: list[threading.Thread] = []


@contextmanager
def at_work() -> Iterator[None]:
    """Within the block this process runs a point."""
    if not _watching:
        if multiprocessing.get_start_method(allow_none=True) not in KNOWN:  # joblib's own, which the ranks of an update
            multiprocessing.set_start_method(None, force=True)  # would be told to use, and do not know
        _watching.append(threading.Thread(target=_end_with_launcher, daemon=True, name="moesaic-launcher"))
        _watching[0].start()
    with _at_work, seldom_collected():
        yield


def _end_with_launcher() -> None:
    while os.getppid() == _launched_by:
        time.sleep(LOOK_SECONDS)
    with _at_work:
        os._exit(1)
