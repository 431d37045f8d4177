"""Lines for a pipe or a log: one a stage, and how far it is from time to time where it takes long."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import table
from pipeline.progress.meter import Reading, duration
from pipeline.progress.view import Lines
from pipeline.summary import StageState, Summary

if TYPE_CHECKING:
    from pipeline.comparison import Comparison

EVERY_SECONDS = 10.0


class Plain(Lines):
    """Stages and results on standard output, progress on standard error. `prefix` tells points that run at once apart."""

    def __init__(self, prefix: str = "", clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(lambda line: table.say(f"{prefix}{line}"))
        self._prefix = prefix
        self._clock = clock
        self._told = clock()
        self._swept = False

    def stage(self, name: str, state: str, why: str) -> None:
        super().stage(name, state, why)
        self._told = self._clock()

    def progress(self, reading: Reading) -> None:
        if self._clock() - self._told < EVERY_SECONDS:
            return
        self._told = self._clock()
        sys.stderr.write(f"{self._prefix}{reading.stage:<8} {reading.fraction:4.0%}    {reading.text}\n")
        sys.stderr.flush()

    def ended(self, name: str, state: StageState) -> None:
        if state.state == "ran" and state.seconds >= EVERY_SECONDS:
            self.say(f"{name:<8} {state.state:<7} in {duration(state.seconds)}")

    def point(self, number: int, overrides: list[str]) -> None:
        self._swept = True
        self.say(" ".join(overrides) if self._prefix else f"\n{number}: {' '.join(overrides)}")

    def result(self, summary: Summary, directory: Path) -> None:
        if summary.before:
            self.say(f"{summary.status} before, by run {str(summary.run_id)[:8]}")
        elif self._prefix:
            self.say(f"{summary.status}; run {summary.run_id}; files in {directory}")
        else:
            table.result(summary, directory)

    def failure(self, directory: Path, cause: str) -> None:
        table.failure(directory)
        if self._swept:  # the others still run; of a single run it is the command's last line
            sys.stderr.write(f"{self._prefix}{cause}\n")

    def comparison(self, found: Comparison, run_id: str, directory: Path) -> None:
        table.comparison(found, run_id, directory)
