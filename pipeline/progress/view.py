"""What the pipeline tells while it runs, whoever listens: each kind of view shows it in its own way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pipeline.progress.meter import Reading
from pipeline.summary import StageState, Summary

if TYPE_CHECKING:
    from pipeline.comparison import Comparison

LOGS = ("auto", "live", "plain", "json")
"""What `log` may be: `auto` is live on a terminal and plain elsewhere."""


class View(Protocol):
    def begins(self, stages: list[str]) -> None:
        """A run of these stages begins."""

    def stage(self, name: str, state: str, why: str) -> None:
        """A stage runs, is cached, or is skipped, and why."""

    def waits(self, name: str, why: str) -> None:
        """A stage cannot be decided on yet."""

    def progress(self, reading: Reading) -> None:
        """How far the stage that runs is. Called often."""

    def ended(self, name: str, state: StageState) -> None:
        """A stage that ran has ended, well or not."""

    def remark(self, line: str) -> None:
        """A sentence about the run that is no error."""

    def point(self, number: int, overrides: list[str]) -> None:
        """A point of a sweep comes next."""

    def result(self, summary: Summary, directory: Path) -> None:
        """The run did what it was asked for."""

    def failure(self, directory: Path, cause: str) -> None:
        """The run failed; what its folder can show of it."""

    def comparison(self, found: Comparison, run_id: str, directory: Path) -> None:
        """What the points of a sweep came to."""


def stage_line(name: str, state: str, why: str) -> str:
    """`place    cached  (run 3f2a…)`."""
    return f"{name:<8} {state:<7} ({why})"


class Lines:
    """Stages as lines to `say`, and nothing else: for tests and as a base of other views."""

    def __init__(self, say: Callable[[str], object]) -> None:
        self.say = say

    def begins(self, stages: list[str]) -> None: ...

    def stage(self, name: str, state: str, why: str) -> None:
        self.say(stage_line(name, state, why))

    def waits(self, name: str, why: str) -> None:
        self.say(stage_line(name, "waits", why))

    def progress(self, reading: Reading) -> None: ...

    def ended(self, name: str, state: StageState) -> None: ...

    def remark(self, line: str) -> None:
        self.say(line)

    def point(self, number: int, overrides: list[str]) -> None: ...

    def result(self, summary: Summary, directory: Path) -> None: ...

    def failure(self, directory: Path, cause: str) -> None: ...

    def comparison(self, found: Comparison, run_id: str, directory: Path) -> None: ...


class Silent(Lines):
    """Nothing: for a process whose terminal another one draws on."""

    def __init__(self) -> None:
        super().__init__(lambda line: None)


@contextmanager
def open_view(log: str, number: int | None) -> Iterator[View]:
    """The view that `log` asks for. `number`: of the sweep's point that this process runs for another one."""
    from pipeline.progress.json_lines import JsonLines
    from pipeline.progress.live import live, on_terminal
    from pipeline.progress.plain import Plain

    if log == "json":
        yield JsonLines(number)
    elif number is not None:  # the process that launched it has the terminal
        yield Plain(f"#{number} ") if log == "plain" or not on_terminal() else Silent()
    elif log == "live" or (log == "auto" and on_terminal()):
        with live() as view:
            yield view
    else:
        yield Plain()


def log_asked(arguments: list[str]) -> str:
    """What a command line says of `log`: for what is told before there is a config, or after it."""
    return next((word.partition("=")[2] for word in reversed(arguments) if word.startswith("log=")), "auto")


def view_without_run(arguments: list[str]) -> View:
    """Of a command line, for what concerns no run."""
    from pipeline.progress.json_lines import JsonLines
    from pipeline.progress.plain import Plain

    return JsonLines() if log_asked(arguments) == "json" else Plain()


def announce(log: str, line: str, fields: dict[str, Any]) -> None:
    """A line for people, or an event with `fields`, of what concerns no run."""
    from pipeline import table
    from pipeline.progress.json_lines import write

    if log == "json":
        write(**fields)
    else:
        table.say(line)
