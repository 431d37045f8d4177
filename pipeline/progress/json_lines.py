"""What happens as JSON, an object a line on standard output: `event`, `time` (seconds since 1970), and its own fields."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.progress.meter import Reading
from pipeline.summary import StageState, Summary

if TYPE_CHECKING:
    from pipeline.comparison import Comparison

EVERY_SECONDS = 1.0


class JsonLines:
    """`number`: of the sweep's point that this process runs for another one."""

    def __init__(self, number: int | None = None) -> None:
        self._point: int | None = number
        self._told = 0.0

    def begins(self, stages: list[str]) -> None:
        self._say("run", stages=stages)

    def stage(self, name: str, state: str, why: str) -> None:
        self._told = 0.0
        self._say("stage", stage=name, state=state, why=why)

    def waits(self, name: str, why: str) -> None:
        self._say("stage", stage=name, state="waits", why=why)

    def progress(self, reading: Reading) -> None:
        if (now := time.monotonic()) - self._told >= EVERY_SECONDS:
            self._told = now
            self._say("progress", **reading.to_dict())

    def ended(self, name: str, state: StageState) -> None:
        self._say("stage", stage=name, **asdict(state))

    def remark(self, line: str) -> None:
        self._say("remark", text=line)

    def point(self, number: int, overrides: list[str]) -> None:
        self._point = number
        self._say("point", overrides=overrides)

    def result(self, summary: Summary, directory: Path) -> None:
        self._say("result", directory=str(directory), **asdict(summary))

    def failure(self, directory: Path, cause: str) -> None:
        self._say("failure", directory=str(directory), cause=cause)

    def comparison(self, found: Comparison, run_id: str, directory: Path) -> None:
        self._point = None
        front = [found.points[index].run_id for index in sorted(found.front)]
        points = [asdict(point) for point in found.points]
        self._say("comparison", run_id=run_id, directory=str(directory), points=points, pareto=front)

    def _say(self, event: str, **fields: Any) -> None:
        of = {} if self._point is None else {"point": self._point}
        write(event, **of, **fields)


def end(exit_code: int, cause: str) -> None:
    """The last line of a command that failed."""
    write("error", exit_code=exit_code, cause=cause)


def write(event: str, **fields: Any) -> None:
    """One line."""
    sys.stdout.write(json.dumps({"event": event, "time": round(time.time(), 3), **fields}, default=str) + "\n")
    sys.stdout.flush()
