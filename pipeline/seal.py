"""What a run left, sealed: `record.json` lists every row and file that the store was given for it, and the tag
`moesaic.seal` is the SHA-256 of that list. A run's tags hold the seals of the stage runs that it took, so that its own
seal speaks for all of them.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline.keys import read_manifest
from pipeline.store import LOADS, NOTE, TAG, Store, stored_params, stored_tags
from stages import paths
from stages.contract import Dataset

SEAL = "seal"
SEAL_TAG = f"{TAG}{SEAL}"
PARENT_TAG = "mlflow.parentRunId"
NAME_TAG = "mlflow.runName"


@dataclass
class Record:
    """All that the store must hold of one run. `metrics`: name -> its points, in order. `files`: name -> SHA-256."""

    run_id: str
    status: str = "RUNNING"
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, list[float]] = field(default_factory=dict)
    datasets: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        paths.write_json(path, asdict(self))


def read_record(path: Path) -> Record:
    return Record(**json.loads(path.read_text(encoding="utf-8")))


@dataclass(frozen=True)
class Sealed:
    """What others say of a run that is finished."""

    seal: str
    tags: Mapping[str, str]
    datasets: tuple[Dataset, ...]


class SealedStore(Store):
    """A store that keeps the record of each run which it starts, and seals the run when it finishes it."""

    def __init__(self, uri: str, experiment: str, artifact_location: str | None = None, *, create: bool = True) -> None:
        super().__init__(uri, experiment, artifact_location, create=create)
        self._open: dict[str, Record] = {}
        self._sealed: dict[str, Sealed] = {}

    def start(self, name: str, tags: Mapping[str, str], parent: str | None = None) -> str:
        run_id = super().start(name, tags, parent)
        given = {**stored_tags(tags), NAME_TAG: name}
        if parent is not None:
            given[PARENT_TAG] = parent
        self._open[run_id] = Record(run_id, tags=given)
        return run_id

    def tag(self, run_id: str, tags: Mapping[str, str]) -> None:
        super().tag(run_id, tags)
        if run_id in self._open:
            self._open[run_id].tags |= stored_tags(tags)

    def params(self, run_id: str, params: Mapping[str, Any]) -> None:
        super().params(run_id, params)
        if run_id in self._open:
            self._open[run_id].params |= stored_params(params)

    def metrics(self, run_id: str, metrics: Mapping[str, float]) -> None:
        super().metrics(run_id, metrics)
        if run_id in self._open:
            for name, value in metrics.items():
                self._open[run_id].metrics.setdefault(name, []).append(float(value))

    def datasets(self, run_id: str, datasets: Iterable[Dataset], context: str = LOADS) -> None:
        given = list(datasets)
        super().datasets(run_id, given, context)
        if run_id in self._open:
            self._open[run_id].datasets += [{**asdict(item), "context": context} for item in given]

    def artifacts(self, run_id: str, folder: Path) -> None:
        if run_id in self._open:
            self._open[run_id].files |= _digests(folder)
        super().artifacts(run_id, folder)

    def artifact(self, run_id: str, file: Path, folder: str | None = None) -> None:
        if run_id in self._open:
            self._open[run_id].files[f"{folder}/{file.name}" if folder else file.name] = paths.sha256(file)
        super().artifact(run_id, file, folder)

    def finish(self, run_id: str, status: str, note: str | None = None) -> None:
        """Close the run. What it was given until now is its record; later changes are told by `moesaic audit`."""
        if note is not None:
            self.tag(run_id, {NOTE: note})
        if (record := self._open.pop(run_id, None)) is not None:
            record.status = status
            with tempfile.TemporaryDirectory(prefix="moesaic-") as temporary:
                file = Path(temporary) / paths.RECORD
                record.write(file)
                file.chmod(0o444)
                seal = paths.sha256(file)
                self._sealed[run_id] = Sealed(seal, record.tags, _datasets_of(record))
                super().tag(run_id, {SEAL: seal})
                super().artifact(run_id, file)
        super().finish(run_id, status)

    def sealed(self, run_id: str) -> Sealed:
        """Of a finished run, this store's own or another one's."""
        if run_id not in self._sealed:
            run = self.run(run_id)
            datasets = []
            for item in run.inputs.dataset_inputs if run.inputs is not None else ():
                if any(tag.value == LOADS for tag in item.tags):
                    source, profile = json.loads(item.dataset.source), json.loads(item.dataset.profile or "{}")
                    datasets.append(Dataset(item.dataset.name, source["uri"], source["sha256"], profile))
            self._sealed[run_id] = Sealed(run.data.tags.get(SEAL_TAG, ""), run.data.tags, tuple(datasets))
        return self._sealed[run_id]


def _datasets_of(record: Record) -> tuple[Dataset, ...]:
    found = [dict(each) for each in record.datasets]
    return tuple(Dataset(**each) for each in found if each.pop("context") == LOADS)


def _digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file below `folder`; those that a manifest beside them tells are not computed again."""
    manifest = folder / paths.MANIFEST
    known = read_manifest(manifest).outputs if manifest.is_file() else {}
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    names = {file.relative_to(folder).as_posix(): file for file in files}
    return {name: known.get(name) or paths.sha256(file) for name, file in names.items()}
