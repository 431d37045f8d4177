"""Checkpoints: find a finished stage run with a key, prove its files by their digests, and link them into a folder."""

from __future__ import annotations

import shutil
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.keys import Difference, KeyParts, Manifest, difference, read_manifest
from pipeline.store import TAG, Store, link, remove
from pipeline.writes import local_folder
from stages import paths
from stages.temporary import temporary_folder

if TYPE_CHECKING:
    from mlflow.entities import Run

NEIGHBOURS = 5
"""Earlier runs that a new key is compared with, to say why it is new."""
_made: dict[tuple[str, str, str], deque[KeyParts]] = {}
"""Those that this process made, by store, experiment and stage: points of a sweep need not ask the store for them."""


@dataclass(frozen=True)
class Hit:
    """A finished stage run whose files are still there and still what its manifest says."""

    run_id: str
    manifest: Manifest
    metrics: dict[str, float]


@dataclass(frozen=True)
class Miss:
    """Why there is no such run."""

    why: str


def look_up(store: Store, parts: KeyParts, folder: Path) -> Hit | Miss:
    """The newest usable checkpoint with the key of `parts`, its outputs linked into `folder`; else why not."""
    query = f"attributes.status = 'FINISHED' and tags.`{TAG}key` = '{parts.key}'"
    broken: str | None = None
    for run in store.search(query, limit=20):
        taken = _take(store, run, parts, folder)
        if isinstance(taken, Hit):
            return taken
        broken = broken or taken.why
    return Miss(broken or _why_new(store, parts))


def _take(store: Store, run: Run, parts: KeyParts, folder: Path) -> Hit | Miss:
    short = run.info.run_id[:8]
    with temporary_folder("checkpoint") as download:
        path = store.fetch(run, paths.MANIFEST, download)
        if path is None:
            return Miss(f"artifact {paths.MANIFEST} of run {short} is gone")
        try:
            manifest = read_manifest(path)
        except (ValueError, TypeError):
            return Miss(f"artifact {paths.MANIFEST} of run {short} cannot be read")
        if manifest.key != parts.key or manifest.parts().key != parts.key:
            return Miss(f"artifact {paths.MANIFEST} of run {short} was changed")
        found: dict[str, Path] = {}
        for name, digest in manifest.outputs.items():
            file = store.fetch(run, name, download)
            if file is None:
                return Miss(f"artifact {name} of run {short} is gone")
            if paths.sha256(file) != digest:
                return Miss(f"artifact {name} of run {short} was changed")
            found[name] = file
        for name in store.files(run):
            if name in found or name == paths.RECORD:  # the record is the store's own
                continue
            if (file := store.fetch(run, name, download)) is not None:
                found[name] = file
        remove(folder)
        folder.mkdir(parents=True)
        for name, file in found.items():
            if local_folder(run) is not None:
                link(file, folder / name)
            else:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.move(file, folder / name)
        return Hit(run.info.run_id, manifest, dict(run.data.metrics))


def made(store: Store, parts: KeyParts) -> None:
    """This process has finished a stage run."""
    _made.setdefault((store.uri, store.experiment, parts.stage), deque(maxlen=NEIGHBOURS)).append(parts)


def _why_new(store: Store, parts: KeyParts) -> str:
    """How the key differs from that of the recent finished run of the stage which it differs from least."""
    if own := _made.get((store.uri, store.experiment, parts.stage)):
        return min((difference(one, parts) for one in reversed(own)), key=lambda one: one.changes).text
    query = f"attributes.status = 'FINISHED' and tags.`{TAG}stage` = '{parts.stage}'"
    found: list[Difference] = []
    recent = store.search(query, limit=NEIGHBOURS)
    with temporary_folder("checkpoint") as download:
        for run in recent:
            path = store.fetch(run, paths.MANIFEST, download)
            with suppress(ValueError, TypeError):
                if path is not None:
                    found.append(difference(read_manifest(path).parts(), parts))
    if not recent:
        return "first run"
    if not found:
        return f"artifacts of the last run {recent[0].info.run_id[:8]} are gone"
    return min(found, key=lambda one: one.changes).text
