"""Writes to the tracking store as plain values, so that one can wait in a file and be delivered later.

Each can be delivered twice with the effect of once: a run carries a tag that no other has, a metric keeps the time at
which it was reported, and the rest replaces what is there.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
import uuid
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlparse

from pipeline.addresses import SQLITE

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, Run

TAG = "moesaic."
BIRTH = f"{TAG}birth"
BATCH = 100  # of params and tags; MLflow takes no more at once
METRIC_BATCH = 1000
LINKED_BYTES = 16 << 20
TAG_LIMIT, PARAM_LIMIT = 5_000, 6_000
RETRIES = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"


def now_ms() -> int:
    return int(time.time() * 1000)


@dataclass(frozen=True)
class Write:
    """`kind`: a key of `DELIVER`. `run_id`: the run it is for; for a start the one that stands in until there is one.
    `at`: when it was made, in milliseconds. `data`: plain values."""

    kind: str
    run_id: str
    data: dict[str, Any] = field(default_factory=dict)
    at: int = field(default_factory=now_ms)


def start(experiment_id: str, name: str, tags: Mapping[str, str]) -> Write:
    birth = uuid.uuid4().hex
    return Write("start", birth, {"experiment": experiment_id, "name": name, "tags": {**tags, BIRTH: birth}})


def batch_of(
    params: Mapping[str, Any] | None = None,
    metrics: Mapping[str, float] | None = None,
    series: Mapping[str, Sequence[float]] | None = None,
    tags: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The data of a `batch` write. `series`: by metric, its value at step 0, 1, …"""
    points = [[name, float(value), 0] for name, value in (metrics or {}).items()]
    points += [[name, float(v), step] for name, values in (series or {}).items() for step, v in enumerate(values)]
    return {
        "params": {name: str(value)[:PARAM_LIMIT] for name, value in (params or {}).items()},
        "metrics": points,
        "tags": tags_of(tags or {}),
    }


def tags_of(tags: Mapping[str, str]) -> dict[str, str]:
    """Those without a dot get the prefix `moesaic.`"""
    return {(name if "." in name else TAG + name): str(value)[:TAG_LIMIT] for name, value in tags.items()}


def deliver(client: MlflowClient, write: Write, *, again: bool = False) -> str:
    """Make the change; the id of the run. `again`: it may have been made before."""
    if write.kind != "start":
        DELIVER[write.kind](client, write)
        return write.run_id
    if again and (found := _born(client, write)):
        return found
    with one_attempt():  # a request whose answer was lost may have made the run: it is looked for, not asked for again
        made = client.create_run(write.data["experiment"], write.at, write.data["tags"], write.data["name"])
    _LOCATIONS.setdefault(client, {})[made.info.run_id] = local_folder(made)
    return str(made.info.run_id)


_LOCATIONS: weakref.WeakKeyDictionary[MlflowClient, dict[str, Path | None]] = weakref.WeakKeyDictionary()
"""Where the artifacts of the runs that a client began lie, if on this machine: it need not ask for each upload."""


def _born(client: MlflowClient, write: Write) -> str | None:
    found = client.search_runs([write.data["experiment"]], f"tags.`{BIRTH}` = '{write.run_id}'", max_results=1)
    return str(found[0].info.run_id) if found else None


@contextmanager
def one_attempt() -> Iterator[None]:
    """Within the block a request to a server that fails is not repeated."""
    before = os.environ.get(RETRIES)
    os.environ[RETRIES] = "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ[RETRIES]
        else:
            os.environ[RETRIES] = before


def _batch(client: MlflowClient, write: Write) -> None:
    """`data`: params {name: text}, tags {name: text}, metrics [[name, value, step], …], each at the time of the write."""
    from mlflow.entities import Metric, Param, RunTag

    params = [Param(name, text) for name, text in write.data.get("params", {}).items()]
    tags = [RunTag(name, text) for name, text in write.data.get("tags", {}).items()]
    metrics = [Metric(name, value, write.at, step) for name, value, step in write.data.get("metrics", ())]
    while params or tags or metrics:
        room = METRIC_BATCH - min(len(params), BATCH) - min(len(tags), BATCH)
        client.log_batch(write.run_id, metrics[:room], params[:BATCH], tags[:BATCH], synchronous=True)
        params, tags, metrics = params[BATCH:], tags[BATCH:], metrics[room:]


def _datasets(client: MlflowClient, write: Write) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    client.log_inputs(
        write.run_id,
        [
            DatasetInput(
                Dataset(
                    name=item["name"],
                    digest=item["sha256"][:36],
                    source_type="external",
                    source=json.dumps({"uri": item["source"], "sha256": item["sha256"]}),
                    profile=json.dumps(item["profile"]),
                ),
                [InputTag("mlflow.data.context", write.data["context"])],
            )
            for item in write.data["datasets"]
        ],
    )


def _files(client: MlflowClient, write: Write) -> None:
    """`data`: source, a file or a folder whose files are meant; folder, into which; protect, whether run folders will
    link to the files. Where the artifacts lie on this machine, large files are linked: they need the disk once."""
    source, folder = Path(write.data["source"]), write.data.get("folder") or ""
    known = _LOCATIONS.setdefault(client, {})
    if write.run_id not in known:
        known[write.run_id] = local_folder(client.get_run(write.run_id))
    local = known[write.run_id]
    if local is None:
        if source.is_dir():
            client.log_artifacts(write.run_id, str(source), folder or None)
        else:
            client.log_artifact(write.run_id, str(source), folder or None)
        return
    if not (room := local.parent.parent).is_dir():  # its disk may be gone
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(room))
    root = source if source.is_dir() else source.parent
    for file in source.rglob("*") if source.is_dir() else (source,):
        if file.is_file():
            target = local / folder / file.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            _place(file, target, linked=file.stat().st_size >= LINKED_BYTES)
            if write.data.get("protect"):
                target.chmod(0o444)


def _place(source: Path, target: Path, *, linked: bool) -> None:
    """Have the content of `source` at `target`, as the same file if `linked` and both are on one file system."""
    target.unlink(missing_ok=True)
    if linked:
        with suppress(OSError):
            os.link(source, target)
            return
    shutil.copyfile(source, target)


def _finish(client: MlflowClient, write: Write) -> None:
    client.set_terminated(write.run_id, write.data["status"], write.at)


DELIVER: dict[str, Callable[[MlflowClient, Write], None]] = {
    "batch": _batch,
    "datasets": _datasets,
    "files": _files,
    "finish": _finish,
}


def make_room(client: MlflowClient, experiment: Experiment, uri: str) -> None:
    """Where artifacts are to lie on this machine: the folder for them, before the first run, or where the database of
    the store at `uri` lies too. Else it has to be there: in place of a disk that is not, nobody would find them."""
    room, database = local_path(experiment.artifact_location), Path(uri.removeprefix(SQLITE)).absolute()
    if room is None or room.is_dir():
        return
    if room.parent == database.parent or not client.search_runs([experiment.experiment_id], max_results=1):
        with suppress(OSError):  # the first upload tells
            room.mkdir(parents=True)


def local_folder(run: Run) -> Path | None:
    """Where the artifacts of `run` lie, if that is on this machine."""
    return local_path(run.info.artifact_uri)


def local_path(address: str) -> Path | None:
    uri = urlparse(address)
    return Path(unquote(uri.path)) if uri.scheme in ("", "file") else None
