"""What a run prints: one line a stage, progress on a terminal, and at the end a table a person understands."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.summary import Summary
from stages import paths
from stages.contract import Progress, silent
from stages.verdict import read_verdict

if TYPE_CHECKING:
    from rich.table import Table

MAX_ROWS = 20


def say(line: str) -> None:
    print(line, flush=True)


@contextmanager
def progress() -> Iterator[Progress]:
    """On a terminal, a status line that shows what is being done; nothing in a pipe."""
    if not sys.stderr.isatty():
        yield silent
        return
    from rich.console import Console

    with Console(stderr=True).status("") as status:
        yield lambda message, fraction: status.update(f"{message} {fraction:4.0%}")


@dataclass(frozen=True)
class Row:
    """A line of the result table, shown if all its metrics are there."""

    label: str
    stage: str
    metrics: tuple[str, ...]
    text: Callable[..., str]


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.4g} {unit}"
        count /= 1000
    return f"{count:.4g} TB"


ROWS = (
    Row("Tokens observed", "collect", ("tokens", "windows"), lambda t, w: f"{t:,.0f} in {w:,.0f} windows"),
    Row("Balancedness before", "place", ("balancedness_before",), lambda b: f"{b:.4f}"),
    Row(
        "Balancedness after", "place", ("balancedness", "balancedness_worst_layer"),
        lambda b, w: f"{b:.4f}  (worst layer {w:.4f}; 1 is perfect)",
    ),
    Row("On windows not seen", "place", ("balancedness_next_window",), lambda b: f"{b:.4f}"),
    Row("Experts that change GPU", "place", ("moved_slots",), lambda m: f"{m:,.0f}"),
    Row("Bytes within nodes", "plan", ("same_node_bytes",), _bytes),
    Row("Bytes across nodes", "plan", ("cross_node_bytes",), _bytes),
    Row("Predicted time", "plan", ("predicted_seconds",), lambda s: f"{s:.3g} s"),
    Row(
        "Update time", "update", ("update_seconds", "effective_gb_per_s", "link_gb_per_s"),
        lambda s, e, l: f"{s:.3g} s  ({e:.3g} GB/s into the busiest rank; the link alone {l:.3g} GB/s)",
    ),
    Row(
        "Checksums", "verify", ("checksums_compared", "mismatches"),
        lambda c, m: f"{c:,.0f} compared, {m:,.0f} wrong",
    ),
)  # fmt: skip


def result(summary: Summary, directory: Path) -> None:
    """The table of a run that did what it was asked for, and where to look next."""
    if summary.status == "dry_run":
        say("Nothing was run: run.dry_run=true.")
        return
    _print(_table(summary))
    say(f"Run {summary.run_id}; files in {directory}")
    say(f"Look at it in the browser: {_command()} ui")


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
    for row in ROWS:
        metrics = summary.stages[row.stage].metrics if row.stage in summary.stages else {}
        if all(name in metrics for name in row.metrics):
            shown.add_row(row.label, row.text(*(metrics[name] for name in row.metrics)))
    shown.add_row("Verdict", VERDICTS.get(summary.status, summary.status))
    return shown


VERDICTS = {
    "verified": "verified: every byte is where it belongs",
    "done": "done (the verify stage was not asked for)",
}


def _print(shown: Table) -> None:
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 160).print(shown)
