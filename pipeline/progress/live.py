"""The live view of a terminal: which stages are done, and how far the one that runs is.

The lines of the stages stay, as in a pipe; below them, for as long as the run goes on,

    collect ✓  place ✓  plan ✓  update …  verify
    ━━━━━━━━━━━━━━━━━━━╸━━━━━━━━━━━━━━━━━━━━  48%  update, 12 s
    updating: 3 of 7 batches, 1.2 GB of 2.8 GB, 340 MB/s, 5 s left
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pipeline.progress.meter import Reading, duration
from pipeline.progress.plain import Plain
from pipeline.progress.view import View
from pipeline.summary import StageState

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

BAR_WIDTH = 40
SIGNS = {"ran": "✓", "cached": "✓", "runs": "…", "waits": "…", "failed": "✗", "skipped": "-"}
STYLES = {"ran": "green", "cached": "green", "runs": "bold", "waits": "bold", "failed": "red", "skipped": "dim"}

_terminal = threading.Lock()


def on_terminal() -> bool:
    """Can standard error move its cursor, with a person before it?"""
    dumb = os.environ.get("TERM", "dumb") in ("dumb", "unknown")
    return sys.stderr.isatty() and not dumb and not os.environ.get("CI")


@contextmanager
def live() -> Iterator[View]:
    """A live view, for the block; a plain one where the terminal has a live view already."""
    if not _terminal.acquire(blocking=False):
        yield Plain()
        return
    try:
        from rich.live import Live

        view = LiveView()
        both = sys.stdout.isatty()  # where only one of them is the terminal, the other keeps its lines
        with Live(
            get_renderable=view.picture,
            console=stderr_console(),
            transient=True,
            refresh_per_second=8,
            redirect_stdout=both,
            redirect_stderr=True,
        ):
            yield view
    finally:
        _terminal.release()


def stderr_console() -> Console:
    """Of the terminal behind standard error, whatever CI variables say."""
    from rich.console import Console

    return Console(stderr=True, force_terminal=True, highlight=False, soft_wrap=False)


class LiveView(Plain):
    """What is shown now; a thread of the terminal draws it some times a second."""

    def __init__(self) -> None:
        super().__init__()
        self._states: dict[str, str] = {}
        self._reading: Reading | None = None
        self._since = time.monotonic()

    def begins(self, stages: list[str]) -> None:
        self._states = dict.fromkeys(stages, "")

    def stage(self, name: str, state: str, why: str) -> None:
        self._states[name] = state
        self._reading, self._since = None, time.monotonic()
        super().stage(name, state, why)

    def waits(self, name: str, why: str) -> None:
        self._states[name] = "waits"
        self._reading = Reading(name, why, 0.0)

    def progress(self, reading: Reading) -> None:
        self._reading = reading

    def ended(self, name: str, state: StageState) -> None:
        self._states[name] = state.state
        self._reading = None

    def picture(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        line = Text.assemble(*self._line(), no_wrap=True, overflow="ellipsis")
        running = next((name for name, state in self._states.items() if state in ("runs", "waits")), None)
        if running is None:
            return line
        reading = self._reading or Reading(running, "starting", 0.0)
        return Group(line, *progress_lines(reading, time.monotonic() - self._since))

    def _line(self) -> Iterator[tuple[str, str]]:
        for name, state in self._states.items():
            yield f"{name} {SIGNS.get(state, '')}".rstrip() + "  ", STYLES.get(state, "dim")


def progress_lines(reading: Reading, seconds: float) -> tuple[RenderableType, Text]:
    """A bar with the stage and its seconds; and what it does."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    row = Table.grid(padding=(0, 2))
    bar = ProgressBar(total=1.0, completed=reading.fraction, width=BAR_WIDTH)
    row.add_row(bar, f"{reading.fraction:4.0%}", f"{reading.stage}, {duration(seconds)}")
    return row, Text(reading.text, no_wrap=True, overflow="ellipsis")
