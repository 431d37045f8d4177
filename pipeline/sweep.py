"""A sweep's parent run: made before its first point, told to its points by a file in the sweep's folder, and closed
with a comparison of them, however the sweep ends."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from pipeline import comparison, record, sync, table
from pipeline.lifecycle import birth_tags, heartbeat, reap_orphans, signals_held
from pipeline.outbox import suppress_outage
from pipeline.schema import tracking_options
from pipeline.seal import SealedStore
from pipeline.store import NOTE, TAG, Store, open_store
from pipeline.story import padded
from stages import paths

if TYPE_CHECKING:
    from mlflow.entities import Run

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


def experiment_of(directory: str) -> str | None:
    """The id of the experiment that the sweep in `directory` is in."""
    file = Path(directory) / PARENT
    return json.loads(file.read_text(encoding="utf-8")).get("experiment_id") if file.is_file() else None


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
        store = open_store(options, kind=SealedStore)
        reap_orphans(store)
        directory = Path(config.hydra.sweep.dir).absolute()
        overrides = list(OmegaConf.to_container(config.hydra.overrides.task) or [])
        tags = {"kind": "sweep", "directory": str(directory), **birth_tags(options.heartbeat_seconds)}
        run_id = record.start_sweep(store, [str(override) for override in overrides], tags)
        paths.write_json(directory / PARENT, {"run_id": run_id, "experiment_id": store.experiment_id})
        sweep = cls(store.kept_in(directory, table.say), run_id, directory)
        sweep.ends.enter_context(heartbeat(store, run_id, options.heartbeat_seconds))
        return sweep

    def points(self) -> list[Run]:
        query = f"tags.`mlflow.parentRunId` = '{self.run_id}' and tags.`{TAG}kind` = 'run'"
        return self.store.search(query, limit=MOST_POINTS)

    def close(self, status: str, cause: str) -> comparison.Comparison:
        found = comparison.compare([])
        with signals_held():
            try:
                self.store.tag(self.run_id, {"outcome": "failed" if cause else "done", "cause": cause})
                with suppress_outage():  # `compare_again` makes up for it
                    found = self.compare(cause)
            finally:
                self.ends.close()
                self.store.finish(self.run_id, status)
                sync.say_what_waits(self.store, self.directory, table.say)
        return found

    def compare(self, cause: str) -> comparison.Comparison:
        """Set the points beside each other, in the sweep's folder and in the store."""
        found = comparison.compare(self.points())
        for file in comparison.write(found, self.directory):
            self.store.artifact(self.run_id, file)
        story = f"**{cause}**\n\n" if cause else ""
        note = padded(story + found.note(self.store.experiment_id))
        self.store.log(self.run_id, metrics=found.metrics(), tags={NOTE: note})
        return found


def compare_again(store: Store, directory: Path) -> None:
    """After a sweep whose points came into the store later: the comparison that it could not make."""
    run_id = parent_of(str(directory))
    if run_id is not None and not (directory / comparison.TABLE).exists():
        sealed = SealedStore.unseen(store.uri, store.experiment, store.experiment_id)
        with sealed.reopened(run_id):
            Sweep(sealed, run_id, directory).compare(store.run(run_id).data.tags.get(f"{TAG}cause", ""))
