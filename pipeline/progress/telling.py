"""The progress of a stage on its way: read by the clock, shown by the view, left in the run folder for other terminals."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path

from pipeline.progress.meter import Meter, Reading
from pipeline.progress.view import View
from stages import paths
from stages.contract import Count

EVERY_SECONDS = 0.5
STALE_SECONDS = 120.0
"""How old a note of progress may be and still be shown: a stage may say nothing for a while."""


class Telling:
    """The `Progress` of one stage. `latest` is for the heartbeat, which carries it to stores elsewhere."""

    def __init__(self, stage: str, view: View, directory: Path) -> None:
        self._meter = Meter(stage)
        self._view = view
        self._file = directory / paths.PROGRESS
        self._written = 0.0

    def __call__(self, message: str, fraction: float, *counts: Count) -> None:
        reading = self._meter.read(message, fraction, *counts)
        self._view.progress(reading)
        if (now := time.monotonic()) - self._written >= EVERY_SECONDS:
            self._written = now
            with suppress(OSError):  # a full disk ends a run where it matters, not here
                paths.write_text(self._file, as_text(reading))


def as_text(reading: Reading) -> str:
    return json.dumps({**reading.to_dict(), "time": time.time()})


def noted(directory: Path) -> str:
    """What the run in `directory` has noted last; nothing if it has not."""
    with suppress(OSError):
        return (directory / paths.PROGRESS).read_text(encoding="utf-8")
    return ""


def read_progress(directory: Path) -> Reading | None:
    """How far the run in `directory` is; None if it does not say, or has not for long."""
    return parse(noted(directory))


def parse(text: str) -> Reading | None:
    """What `as_text` wrote, unless it is old."""
    try:
        value = json.loads(text)
        if time.time() - value.pop("time") > STALE_SECONDS:
            return None
        return Reading.from_dict(value)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def forget(directory: Path) -> None:
    """Take the note away when the run has ended."""
    with suppress(OSError):
        (directory / paths.PROGRESS).unlink(missing_ok=True)
