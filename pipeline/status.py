"""`moesaic status`: the latest runs, or one run with its stages."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import comparison
from pipeline.lifecycle import alive
from pipeline.progress.meter import Reading
from pipeline.progress.telling import parse, read_progress
from pipeline.store import TAG, Store

if TYPE_CHECKING:
    from mlflow.entities import Run

KEY_NUMBERS = {
    "collect": ("windows", "tokens", "imbalance"),
    "place": ("balancedness_before", "balancedness", "balancedness_worst_layer", "moved_slots"),
    "plan": ("same_node_bytes", "cross_node_bytes", "predicted_seconds"),
    "update": ("update_seconds", "effective_gb_per_s", "link_efficiency"),
    "verify": ("checksums_compared", "mismatches"),
}
FIRST_METRICS = 4
RUNNING = ("running", "scheduled")
GONE = "gone"
"""The status of a run that says it is running, and whose process is not there any more."""


def status(store: Store, prefix: str | None, limit: int, *, as_json: bool) -> str:
    """Text (or JSON) about the run or the sweep that `prefix` begins, or the latest `limit` runs."""
    value = look(store, prefix, limit)
    return json.dumps(value, indent=1) if as_json else text_of(value)


def look(store: Store, prefix: str | None, limit: int) -> Any:
    """One run, one sweep (with its `points`), or a list of the latest runs."""
    if prefix is None:
        return [describe(store, run) for run in store.search(f"tags.`{TAG}kind` = 'run'", limit=limit)]
    run = store.find(prefix)
    if run.data.tags.get(f"{TAG}kind") != "sweep":
        return describe(store, store.pipeline_run(run), stages=True)
    points = [describe(store, point) for point in comparison.latest(comparison.points_of(store, run.info.run_id))]
    return {**describe(store, run), "points": points}


def text_of(value: Any) -> str:
    """What `look` found, for people."""
    if isinstance(value, list):
        return _many(value)
    if "points" not in value:
        return _one(value)
    return f"{_head(value)}\n{_many(value['points'])}"


def over(value: Any) -> bool:
    """Has the run or the sweep that `look` found ended?"""
    return not isinstance(value, list) and value["status"] not in RUNNING


def describe(store: Store, run: Run, *, stages: bool = False) -> dict[str, Any]:
    """What the store knows of a pipeline run, and of its stages if asked for."""
    tags, metrics = run.data.tags, run.data.metrics
    value: dict[str, Any] = {
        "run_id": run.info.run_id,
        "name": run.info.run_name,
        "status": _status(run),
        "mlflow_status": run.info.status,
        "started": datetime.fromtimestamp(run.info.start_time / 1000, UTC).isoformat(timespec="seconds"),
        "cause": tags.get(f"{TAG}cause", ""),
        "directory": tags.get(f"{TAG}directory"),
        "progress": None,
        "stages": {},
    }
    if value["status"] in RUNNING and (reading := _progress(run)):
        value["progress"] = {**reading.to_dict(), "text": reading.text}
    prefix = f"{TAG}stage."
    states = {name.removeprefix(prefix): text for name, text in tags.items() if name.startswith(prefix)}
    for name, text in states.items():
        state, _, made_by = text.partition(" ")
        value["stages"][name] = {
            "state": state,
            "run_id": made_by or None,
            "metrics": {k.removeprefix(f"{name}."): v for k, v in metrics.items() if k.startswith(f"{name}.")},
        }
    if stages and not states:  # still running, or killed before it could say
        for child in store.search(f"tags.`mlflow.parentRunId` = '{run.info.run_id}'"):
            value["stages"][child.data.tags[f"{TAG}stage"]] = {
                "state": child.info.status.lower(),
                "run_id": child.info.run_id,
                "metrics": child.data.metrics,
            }
    return value


def _status(run: Run) -> str:
    if run.info.status == "RUNNING":  # the outcome, if there is one, is that of an interrupted sweep which goes on
        return "running" if alive(run) else GONE
    return str(run.data.tags.get(f"{TAG}outcome", run.info.status.lower()))


def _progress(run: Run) -> Reading | None:
    """From the run folder where it is here, else from what the heartbeat carried to the store."""
    directory = run.data.tags.get(f"{TAG}directory")
    here = read_progress(Path(directory)) if directory else None
    return here or parse(run.data.tags.get(f"{TAG}progress", ""))


def _many(runs: list[dict[str, Any]]) -> str:
    from rich.table import Table

    if not runs:
        return "No runs yet."
    table = Table(box=None, pad_edge=False)
    for column in ("run", "started", "status", "what", "stages"):
        table.add_column(column)
    for run in runs:
        stages = " ".join(
            name + {"cached": "*", "failed": "!", "skipped": "-"}.get(stage["state"], "")
            for name, stage in run["stages"].items()
        )
        if now := run["progress"]:
            stages = f"{stages} {now['stage']} {now['fraction']:.0%}, {now['text']}".strip()
        table.add_row(run["run_id"][:8], run["started"].replace("+00:00", "Z"), run["status"], run["name"], stages)
    return _text(table) + "\n* cached, - not run, ! failed; one run with its numbers: moesaic status RUN"


def _one(run: dict[str, Any]) -> str:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("stage", "state", "run", "key numbers"):
        table.add_column(column)
    for name, stage in run["stages"].items():
        metrics = stage["metrics"]
        names = [m for m in KEY_NUMBERS.get(name, tuple(metrics)[:FIRST_METRICS]) if m in metrics]
        numbers = ", ".join(f"{metric} {metrics[metric]:.6g}" for metric in names)
        table.add_row(name, stage["state"], (stage["run_id"] or "")[:8], numbers)
    return _head(run) + _text(table)


def _head(run: dict[str, Any]) -> str:
    head = f"{run['run_id']}  {run['status']}\n{run['name']}, started {run['started']}\nfiles: {run['directory']}\n"
    if run["cause"]:
        head += f"cause: {run['cause']}\n"
    if now := run["progress"]:
        head += f"now: {now['stage']} {now['fraction']:.0%}, {now['text']}\n"
    return head


def _text(table: Any) -> str:
    from rich.console import Console

    out = io.StringIO()
    Console(file=out, width=180).print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())
