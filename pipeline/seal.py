"""What a run left, sealed: `record.json` lists every row and file that the store was given for it, and the tag
`moesaic.seal` is the SHA-256 of that list. A run's tags hold the seals of the stage runs that it took, so that its own
seal speaks for all of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pipeline.keys import read_manifest
from pipeline.lifecycle import signals_held
from pipeline.store import LOADS, TAG, Store
from pipeline.writes import BIRTH, Write, batch_of, now_ms
from stages import paths
from stages.contract import Dataset
from stages.temporary import temporary_folder

if TYPE_CHECKING:
    from mlflow.entities import Run

SEAL = "seal"
SEAL_TAG = f"{TAG}{SEAL}"
NAME_TAG = "mlflow.runName"
RESTLESS = (f"{TAG}heartbeat", f"{TAG}progress")
"""Say nothing of a run that has ended, and a last one may come late."""
REMOVED = f"{TAG}removed."
"""And the id of a point that `moesaic gc` removed: on its sweep, which is long sealed then."""


@dataclass
class Record:
    """All that the store must hold of one run. `metrics`: name -> its points, in order. `files`: name -> SHA-256.

    `started`, `ended`: in milliseconds, 0 where an earlier version of moesaic did not note them.

    `run_id` is what the run was known by when it ended: its id or, where the store was away when it began, its `birth`,
    which stood in for it (`pipeline.outbox`).
    """

    run_id: str
    birth: str
    status: str = "RUNNING"
    started: int = 0
    ended: int = 0
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, list[float]] = field(default_factory=dict)
    datasets: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)

    def take(self, data: Mapping[str, Any]) -> None:
        """`data`: of a write."""
        self.params |= data.get("params", {})
        self.tags |= {name: text for name, text in data.get("tags", {}).items() if name not in RESTLESS}
        for name, value, _ in data.get("metrics", ()):
            self.metrics.setdefault(name, []).append(value)
        self.datasets += [{**item, "context": data["context"]} for item in data.get("datasets", ())]

    def write(self, path: Path) -> None:
        paths.write_json(path, asdict(self))


def read_record(path: Path, stood_in: Mapping[str, str] | None = None) -> Record:
    """`stood_in`: what stood in for a run -> the id that the store gave it later, which the record could not know."""
    text = path.read_text(encoding="utf-8")
    birth = json.loads(text)["birth"]
    for stand_in, real in (stood_in or {}).items():
        text = text.replace(stand_in, real).replace(f"[{stand_in[:8]}]", f"[{real[:8]}]")
    record = Record(**{**json.loads(text), "birth": birth})
    record.tags[BIRTH] = birth
    return record


@dataclass(frozen=True)
class Sealed:
    """What others say of a run that is finished."""

    seal: str
    tags: Mapping[str, str]
    datasets: tuple[Dataset, ...]
    files: frozenset[str]


class SealedStore(Store):
    """A store that keeps the record of each run which it starts, and seals the run when it finishes it."""

    def __init__(self, uri: str, experiment: str, artifact_location: str | None = None, *, create: bool = True) -> None:
        super().__init__(uri, experiment, artifact_location, create=create)
        self._open: dict[str, Record] = {}
        self._sealed: dict[str, Sealed] = {}

    @classmethod
    def unseen(cls, uri: str, experiment: str, experiment_id: str) -> Self:
        store = super().unseen(uri, experiment, experiment_id)
        store._open, store._sealed = {}, {}
        return store

    def _write(self, write: Write) -> str:
        digests = _digests(write) if write.kind == "files" and write.run_id in self._open else {}
        with signals_held():  # the record would lack what the store has
            run_id = super()._write(write)
            if write.kind == "start":
                tags = {name: text for name, text in write.data["tags"].items() if name not in RESTLESS}
                tags[NAME_TAG] = write.data["name"]
                self._open[run_id] = Record(run_id, write.run_id, tags=tags, started=write.at)
            elif (record := self._open.get(write.run_id)) is not None:
                record.files |= digests
                record.take(write.data)
        return run_id

    def finish(
        self,
        run_id: str,
        status: str,
        *,
        metrics: Mapping[str, float] | None = None,
        tags: Mapping[str, str] | None = None,
        at: int | None = None,
    ) -> None:
        """Close the run. What it was given is its record; later changes are told by `moesaic audit`."""
        at, seal = at or now_ms(), {}
        with signals_held():  # between its seal and its end a run would be neither
            if (record := self._open.pop(run_id, None)) is not None:
                record.status, record.ended = status, at
                record.take(batch_of(metrics=metrics, tags=tags))
                seal = {SEAL: self._seal(run_id, record)}
            super().finish(run_id, status, metrics=metrics, tags={**(tags or {}), **seal}, at=at)

    def _seal(self, run_id: str, record: Record) -> str:
        """Leave the record with the run; its digest, which is the seal."""
        with temporary_folder("record") as folder:
            file = folder / paths.RECORD
            record.write(file)
            seal = paths.sha256(file)
            self._sealed[run_id] = Sealed(seal, record.tags, _datasets_of(record), frozenset(record.files))
            self.artifact(run_id, file)
        return seal

    @contextmanager
    def reopened(self, run_id: str) -> Iterator[None]:
        """Within the block a finished run is given more, and sealed anew. Where its record is not what was sealed, that
        stays for an audit to find."""
        self._recall(run_id)
        yield
        if (record := self._open.pop(run_id, None)) is not None:
            self.tag(run_id, {SEAL: self._seal(run_id, record)})

    def take_up(self, run_id: str) -> None:
        """A sweep that was interrupted goes on: it has no seal until it ends once more. One that was killed before it
        could be sealed is taken as the store has it."""
        if SEAL_TAG not in self.run(run_id).data.tags:
            self._open[run_id] = self._as_it_is(run_id)
        elif self._recall(run_id):
            self.client.delete_tag(run_id, SEAL_TAG)

    def _recall(self, run_id: str) -> bool:
        """Open the record that was sealed, if it is still that."""
        if (record := sealed_record(self, self.run(run_id))) is not None:
            self._open[run_id] = record
        return run_id in self._open

    def _as_it_is(self, run_id: str) -> Record:
        """Of a sweep, which has no datasets."""
        run = self.run(run_id)
        tags = {name: text for name, text in run.data.tags.items() if name not in RESTLESS}
        points = {name: self.client.get_metric_history(run_id, name) for name in run.data.metrics}
        metrics = {name: [point.value for point in history] for name, history in points.items()}
        with temporary_folder("record") as folder:
            files = {name: self.fetch(run, name, folder) for name in self.files(run) if name != paths.RECORD}
            digests = {name: paths.sha256(file) for name, file in files.items() if file is not None}
        birth, params = tags.get(BIRTH, ""), dict(run.data.params)
        started = run.info.start_time
        return Record(run_id, birth, started=started, tags=tags, params=params, metrics=metrics, files=digests)

    def sealed(self, run_id: str) -> Sealed:
        """Of a finished run, this store's own or another one's."""
        if run_id not in self._sealed:
            run = self.run(run_id)
            datasets = []
            for item in run.inputs.dataset_inputs if run.inputs is not None else ():
                if any(tag.value == LOADS for tag in item.tags):
                    source, profile = json.loads(item.dataset.source), json.loads(item.dataset.profile or "{}")
                    datasets.append(Dataset(item.dataset.name, source["uri"], source["sha256"], profile))
            self._sealed[run_id] = Sealed(
                run.data.tags.get(SEAL_TAG, ""), run.data.tags, tuple(datasets), frozenset(self.files(run))
            )
        return self._sealed[run_id]


def sealed_record(store: Store, run: Run) -> Record | None:
    """The record that `run` left, if it is what the run's seal seals."""
    with temporary_folder("record") as folder:
        file = store.fetch(run, paths.RECORD, folder)
        if file is None or paths.sha256(file) != run.data.tags.get(SEAL_TAG):
            return None
        return Record(**json.loads(file.read_text(encoding="utf-8")))


def _datasets_of(record: Record) -> tuple[Dataset, ...]:
    found = [dict(each) for each in record.datasets]
    return tuple(Dataset(**each) for each in found if each.pop("context") == LOADS)


def _digests(write: Write) -> dict[str, str]:
    """Name in the store -> SHA-256 of every file that `write` uploads; those that a manifest beside them tells are not
    computed again."""
    source, into = Path(write.data["source"]), write.data.get("folder")
    root = source if source.is_dir() else source.parent
    manifest = root / paths.MANIFEST
    known = read_manifest(manifest).outputs if source.is_dir() and manifest.is_file() else {}
    files = (file for file in (source.rglob("*") if source.is_dir() else (source,)) if file.is_file())
    found = {}
    for file in files:
        name = file.relative_to(root).as_posix()
        found[f"{into}/{name}" if into else name] = known.get(name) or paths.sha256(file)
    return found
