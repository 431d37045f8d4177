"""How far a sweep is whose points run in other processes: by what they leave in the sweep's folder."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.points import GOOD
from pipeline.progress.live import BAR_WIDTH, on_terminal, stderr_console
from pipeline.progress.meter import Reading, duration
from pipeline.progress.telling import read_progress
from pipeline.summary import read_summary
from stages import paths

if TYPE_CHECKING:
    from rich.console import RenderableType

EVERY_SECONDS = 0.5
MOST_SHOWN = 16


@dataclass
class Watched:
    """The points of the sweep in `directory`, as far as they have left something. `own_lines`: what the points write is
    not seen here, so that their ends are told."""

    directory: Path
    run_id: str
    own_lines: bool
    began: float = field(default_factory=time.time)
    ended: dict[int, str] = field(default_factory=dict)
    running: dict[int, Reading | None] = field(default_factory=dict)

    def look(self) -> list[str]:
        """Look again; a line for each point that has ended since."""
        lines = []
        self.running = {}
        for folder in self.directory.iterdir() if self.directory.is_dir() else ():
            if not folder.name.isdigit() or (number := int(folder.name)) in self.ended:
                continue
            told = self._end(folder)
            if told is None:
                self.running[number] = read_progress(folder)
            else:
                self.ended[number] = told
                lines.append(f"#{number} {told}")
        return lines

    def _end(self, folder: Path) -> str | None:
        """How the point ended; None if it still runs, or has been begun again."""
        file = folder / paths.SUMMARY
        try:
            summary = read_summary(file)
            fresh = file.stat().st_mtime >= self.began - 1
        except (OSError, ValueError, TypeError):
            return None
        if summary.status in GOOD:
            return summary.status
        return f"failed: {summary.cause}" if fresh else None

    def picture(self) -> RenderableType:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        failed = sum(told.startswith("failed") for told in self.ended.values())
        told = f"{len(self.ended)} points done" + (f", {failed} of them failed" if failed else "")
        head = Text(f"Sweep {self.run_id[:8]}: {told}, {duration(time.time() - self.began)}", no_wrap=True)
        rows = Table.grid(padding=(0, 2))
        for number, reading in sorted(self.running.items())[:MOST_SHOWN]:
            fraction = reading.fraction if reading else 0.0
            text = f"{reading.stage}, {reading.text}" if reading else "between stages"
            bar = ProgressBar(total=1.0, completed=fraction, width=BAR_WIDTH // 2)
            rows.add_row(f"#{number}", bar, Text(text, no_wrap=True, overflow="ellipsis"))
        return Group(head, rows)


@contextmanager
def watching(log: str, seen: Watched) -> Iterator[None]:
    """Within the block a thread looks at the points: on a terminal they are shown, elsewhere their ends are told if the
    points cannot tell them here."""
    if log == "json" or not (seen.own_lines or _drawn(log)):
        yield
        return
    done = threading.Event()
    thread = threading.Thread(target=_draw if _drawn(log) else _tell, args=(seen, done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _drawn(log: str) -> bool:
    return log == "live" or (log == "auto" and on_terminal())


def _draw(seen: Watched, done: threading.Event) -> None:
    from rich.live import Live

    with Live(get_renderable=seen.picture, console=stderr_console(), transient=True, refresh_per_second=4) as live:
        while True:
            last = done.is_set()
            for line in seen.look():
                live.console.print(line, markup=False)
            if last:
                return
            done.wait(EVERY_SECONDS)


def _tell(seen: Watched, done: threading.Event) -> None:
    while True:
        last = done.is_set()
        for line in seen.look():
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()
        if last:
            return
        done.wait(EVERY_SECONDS)
