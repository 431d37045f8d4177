"""`moesaic gc`: remove what no kept run needs, from the store and from the run folders on this machine."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.addresses import HTTP
from pipeline.needed import Fact, Verdict, not_needed
from pipeline.outbox import RUN_LOCK, waits
from pipeline.seal import REMOVED
from pipeline.store import TAG, Store, remove
from pipeline.story import now
from pipeline.sync import claimed
from pipeline.writes import local_folder
from stages import paths

if TYPE_CHECKING:
    from mlflow.entities import Run

PAGE = 1000
OURS = (".hydra", "moesaic.log", RUN_LOCK, paths.PROGRESS, paths.SUMMARY, paths.REPORT)


@dataclass(frozen=True)
class Garbage:
    """What can go: `runs` of the store, `artifacts` of theirs on this machine, and by run folder what they left in it.
    `points`: by sweep that stays, those of its points that go."""

    verdict: Verdict
    runs: list[Run]
    artifacts: list[Path]
    left: dict[Path, list[Path]]
    points: dict[str, list[str]]

    @property
    def paths(self) -> list[Path]:
        return [*self.artifacts, *(path for paths in self.left.values() for path in paths)]


def collect(store: Store, days: float | None, *, failed: bool) -> Garbage:
    """Find it; nothing is touched."""
    runs = {run.info.run_id: run for run in every_run(store)}
    verdict = not_needed([_fact(run) for run in runs.values()], int(time.time() * 1000), days=days, failed=failed)
    gone = [runs[run_id] for run_id in verdict.remove]
    artifacts = [folder.parent for run in gone if (folder := local_folder(run)) is not None and folder.parent.is_dir()]
    left = {Path(run.data.tags[f"{TAG}directory"]): found for run in gone if (found := _left(run))}
    points: dict[str, list[str]] = {}
    for run in gone:
        sweep = runs.get(run.data.tags.get("mlflow.parentRunId", ""))
        if sweep is not None and sweep.info.run_id not in verdict.remove and _is_sweep(sweep):
            points.setdefault(sweep.info.run_id, []).append(run.info.run_id)
    return Garbage(verdict, gone, artifacts, left, points)


def sweep_up(store: Store, found: Garbage) -> None:
    """Remove it: artifacts first, so that what is interrupted can be found again."""
    for sweep, points in found.points.items():  # or its audit would miss them
        store.tag(sweep, {f"{REMOVED}{point}": now() for point in points})
    for path in found.paths:
        _remove(path)
    for directory in found.left:
        with suppress(OSError):
            directory.rmdir()  # unless something of others is in it
    remote = store.uri.startswith(HTTP)
    for run in found.runs:
        if run.info.lifecycle_stage == "active":
            store.client.delete_run(run.info.run_id)
        if remote and local_folder(run) is None:
            _delete_remotely(store, run)
    if not remote:
        _purge(store, [run.info.run_id for run in found.runs])


def report(found: Garbage, size: str, say: Callable[[str], None], *, removed: bool) -> None:
    """Say what goes, or went, and what stays although it was to go."""
    kinds = [run.data.tags.get(f"{TAG}kind", "run") for run in found.runs]
    for run in found.runs:
        if run.data.tags.get(f"{TAG}kind") != "stage":
            ended = run.info.lifecycle_stage if run.info.lifecycle_stage != "active" else run.info.status.lower()
            say(f"{run.info.run_id[:8]}  {ended:<8}  {run.info.run_name}")
    for run_id, user in found.verdict.rescued.items():
        say(f"{run_id[:8]}  stays     run {user[:8]} took a stage of it from its checkpoint")
    counts = ", ".join(f"{kinds.count(kind)} {kind}s" for kind in ("run", "stage", "sweep") if kind in kinds)
    if not counts:
        say("Nothing to remove: every run is kept, and needs what is there.")
    elif removed:
        say(f"Removed: {counts}; {size} on this machine.")
    else:
        say(f"To remove: {counts}; {size} on this machine. Nothing was touched: call it again with --delete.")


def every_run(store: Store) -> Iterable[Run]:
    """All runs of the experiment, those that a person deleted too."""
    from mlflow.entities import ViewType

    token = None
    while True:
        page = store.client.search_runs([store.experiment_id], "", ViewType.ALL, PAGE, page_token=token)
        yield from page
        if not (token := page.token):
            return


def freed(roots: Iterable[Path]) -> int:
    """Bytes that the disk gets back: a file counts once all its links are among what goes."""
    seen: dict[tuple[int, int], list[int]] = {}
    for root in roots:
        for file in root.rglob("*") if root.is_dir() else (root,):
            if file.is_file() and not file.is_symlink():
                state = file.stat()
                seen.setdefault((state.st_dev, state.st_ino), [state.st_nlink, state.st_size, 0])[2] += 1
    return sum(size for links, size, found in seen.values() if found >= links)


def _is_sweep(run: Run) -> bool:
    """That can be given a tag."""
    return run.data.tags.get(f"{TAG}kind") == "sweep" and run.info.lifecycle_stage == "active"


def _fact(run: Run) -> Fact:
    tags, info = run.data.tags, run.info
    shown = [text.partition(" ")[2] for name, text in tags.items() if name.startswith(f"{TAG}stage.")]
    kind = tags.get(f"{TAG}kind", "other")
    deleted = info.lifecycle_stage == "deleted"
    uses = frozenset(filter(None, shown))
    return Fact(info.run_id, kind, deleted, info.status, info.end_time, tags.get("mlflow.parentRunId"), uses)


def _left(run: Run) -> list[Path]:
    """What the run left in its folder here, if that still shows it and nothing of it is missing in the store."""
    directory = Path(run.data.tags.get(f"{TAG}directory", "/nowhere"))
    try:
        shown = json.loads((directory / paths.SUMMARY).read_text(encoding="utf-8"))["run_id"]
    except (OSError, ValueError, KeyError):
        return []
    if shown != run.info.run_id or waits(directory):
        return []
    with claimed(directory) as free:
        if not free:
            return []
    stages = [manifest.parent for manifest in directory.glob(f"*/{paths.MANIFEST}") if not manifest.parent.is_symlink()]
    return [*stages, *directory.glob(".*.partial"), *(directory / name for name in OURS if (directory / name).exists())]


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        remove(path)
    else:
        path.unlink(missing_ok=True)


def _delete_remotely(store: Store, run: Run) -> None:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    get_artifact_repository(run.info.artifact_uri, tracking_uri=store.uri).delete_artifacts()  # type: ignore[no-untyped-call]


def _purge(store: Store, run_ids: list[str]) -> None:
    """Take deleted runs out of a database. This is what `mlflow gc` does, which would also take out all experiments that
    someone deleted."""
    backend = store.client._tracking_client.store
    for run_id in run_ids:
        backend._hard_delete_run(run_id)
