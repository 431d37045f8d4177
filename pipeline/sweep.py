"""A sweep's parent run: made before its first point, told to its points by a file in the sweep's folder, and closed
with a comparison of them, however the sweep ends."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from pipeline import comparison, record
from pipeline.lifecycle import birth_tags, heartbeat, reap_orphans, signals_held
from pipeline.schema import tracking_options
from pipeline.seal import SealedStore
from pipeline.store import TAG, tracking_uri
from pipeline.story import padded
from stages import paths

PARENT = "sweep.json"
MOST_POINTS = 10_000


class ParentRun(Callback):
    """Called by Hydra, in the process that launches the points, before it does."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        if not _OPEN and not config.run.dry_run:
            _OPEN.append(Sweep.begin(config))


_OPEN: list[Sweep] = []


def parent_of(directory: str) -> str | None:
    """The id of the parent run of the sweep in `directory`; None if it could not be made."""
    file = Path(directory) / PARENT
    return str(json.loads(file.read_text(encoding="utf-8"))["run_id"]) if file.is_file() else None


def close(status: str, cause: str) -> tuple[comparison.Comparison, str, Path] | None:
    """Finish the sweep that this process launched, if it did and still has to: what its points came to, the id of its
    run, and its folder."""
    if not _OPEN:
        return None
    sweep = _OPEN.pop()
    return sweep.close(status, cause), sweep.run_id, sweep.directory


@dataclass
class Sweep:
    store: SealedStore
    run_id: str
    directory: Path
    ends: ExitStack = field(default_factory=ExitStack)

    @classmethod
    def begin(cls, config: DictConfig) -> Sweep:
        options = tracking_options(config)
        store = SealedStore(tracking_uri(options.uri, options.kind), options.experiment, options.artifact_location)
        reap_orphans(store)
        directory = Path(config.hydra.sweep.dir).absolute()
        overrides = list(OmegaConf.to_container(config.hydra.overrides.task) or [])
        tags = {"kind": "sweep", "directory": str(directory), **birth_tags(options.heartbeat_seconds)}
        run_id = record.start_sweep(store, [str(override) for override in overrides], tags)
        paths.write_json(directory / PARENT, {"run_id": run_id})
        sweep = cls(store, run_id, directory)
        sweep.ends.enter_context(heartbeat(store, run_id, options.heartbeat_seconds))
        return sweep

    def close(self, status: str, cause: str) -> comparison.Comparison:
        query = f"tags.`mlflow.parentRunId` = '{self.run_id}' and tags.`{TAG}kind` = 'run'"
        found = comparison.compare(self.store.search(query, limit=MOST_POINTS))
        story = f"**{cause}**\n\n" if cause else ""
        with signals_held():
            try:
                for file in comparison.write(found, self.directory):
                    self.store.artifact(self.run_id, file)
                self.store.metrics(self.run_id, found.metrics())
                self.store.tag(self.run_id, {"outcome": "failed" if cause else "done", "cause": cause})
            finally:
                self.ends.close()
                self.store.finish(self.run_id, status, padded(story + found.note(self.store.experiment_id)))
        return found
