"""What a run prints at its end: a table that a person understands, and where to look next."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.comparison import STAR, Comparison
from pipeline.headline import headline
from pipeline.summary import Summary
from stages import paths
from stages.verdict import read_verdict

if TYPE_CHECKING:
    from rich.table import Table

MAX_ROWS = 20


def say(line: str) -> None:
    print(line, flush=True)


def result(summary: Summary, directory: Path) -> None:
    """The table of a run that did what it was asked for, and where to look next."""
    if summary.status == "dry_run":
        say("Nothing was run: run.dry_run=true.")
        return
    _print(_table(summary))
    say(f"Run {summary.run_id}; files in {directory}")
    if (report := directory / paths.REPORT).is_file():
        say(f"Report: {report}")
    say(f"Look at it in the browser: {_command()} ui{summary.options}")


def comparison(found: Comparison, run_id: str, directory: Path) -> None:
    """What the points of a sweep came to, and where to look next."""
    if found.points:
        say("")
        _print(found.table())
        if found.front:
            say(f"{STAR} {len(found.front)} of {len(found.points)} points are beaten by no other.")
    say(f"Sweep {run_id}; comparison in {directory}")


def _command() -> str:
    """How to call moesaic from here: by its name, or by its path where the shell would not find this one."""
    beside = Path(sys.executable).with_name("moesaic")
    found = shutil.which("moesaic")
    if not beside.exists() or (found and Path(found).samefile(beside)):
        return "moesaic"
    return str(beside.relative_to(Path.cwd()) if beside.is_relative_to(Path.cwd()) else beside)


def failure(directory: Path) -> None:
    """What a failed run can show: the mismatches, if the verdict was corruption."""
    for file in directory.glob(f"*/{paths.VERDICT}"):
        verdict = read_verdict(file)
        if verdict.mismatches:
            from rich.table import Table

            shown = Table(title=f"{len(verdict.mismatches)} wrong checksums", title_justify="left")
            for column in ("layer", "slot", "rank", "expert", "tensor", "expected", "found", "whose bytes"):
                shown.add_column(column)
            for m in verdict.mismatches[:MAX_ROWS]:
                cells = (m.layer, m.slot, m.rank, m.logical_expert, m.tensor, m.expected, m.found, m.whose)
                shown.add_row(*map(str, cells))
            _print(shown)
            if len(verdict.mismatches) > MAX_ROWS:
                say(f"… and {len(verdict.mismatches) - MAX_ROWS} more in {file}")


def _table(summary: Summary) -> Table:
    from rich.table import Table

    shown = Table(show_header=False, box=None, pad_edge=False)
    shown.add_column(style="bold")
    for label, text in headline(summary):
        shown.add_row(label, text)
    last = [name for name, state in summary.stages.items() if state.state != "skipped"][-1:]
    done = f"done, up to {last[0]}" if last else "done"
    shown.add_row("Verdict", "verified: every byte is where it belongs" if summary.status == "verified" else done)
    return shown


def _print(shown: Table) -> None:
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 160).print(shown)
