"""The tracking store: one MLflow experiment, seen through what the pipeline needs of it.

Only the client API is used: no active run, nothing global, so that several runs can go on in one process.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlparse

from filelock import FileLock

from stages.contract import Dataset
from stages.errors import BadInput, MoesaicError, sentence_of

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # MLflow's seven take minutes on a server that is gone
logging.getLogger("alembic").setLevel(logging.WARNING)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

DEFAULT_STORE = Path("outputs/mlflow.db")
SQLITE = "sqlite:///"
TAG = "moesaic."
NOTE = "mlflow.note.content"
LOADS = "loads"
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}  # the UI then opens on the runs
TAG_LIMIT = 5_000
PARAM_LIMIT = 6_000
BATCH = 100
LINKED_BYTES = 16 << 20


def tracking_uri(configured: str | None = None) -> str:
    """The configured URI, else MLFLOW_TRACKING_URI, else the SQLite file in the current folder."""
    uri = configured or os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}{DEFAULT_STORE.absolute()}"
    if uri.startswith(SQLITE):
        return f"{SQLITE}{Path(uri.removeprefix(SQLITE)).absolute()}"
    return uri


class Store:
    """`experiment_id` is that of the experiment named; runs are MLflow runs with `moesaic.*` tags."""

    def __init__(self, uri: str, experiment: str, artifact_location: str | None = None, *, create: bool = True) -> None:
        self.uri = uri
        self.experiment = experiment
        if uri.startswith(SQLITE):
            path = Path(uri.removeprefix(SQLITE))
            if not create and not path.exists():
                raise BadInput(
                    f"There is no tracking store at {path}: run `moesaic run` first, or set MLFLOW_TRACKING_URI."
                )
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise MoesaicError(f"The tracking store cannot be made: {sentence_of(error)}") from error
            artifact_location = artifact_location or (path.parent.absolute() / "mlartifacts").as_uri()
            # The first client migrates the schema and names the experiment; several at once would break both.
            with FileLock(path.with_suffix(".lock")):
                self.experiment_id = self._experiment(artifact_location, create)
        else:
            self.experiment_id = self._experiment(artifact_location, create)

    @cached_property
    def client(self) -> MlflowClient:
        from mlflow import MlflowClient

        return MlflowClient(self.uri)

    def _experiment(self, artifact_location: str | None, create: bool) -> str:
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        try:
            found = self.client.get_experiment_by_name(self.experiment)
            if found is None and create:
                try:
                    return str(self.client.create_experiment(self.experiment, artifact_location, tags=EXPERIMENT_TAGS))
                except MlflowException:  # another process was first
                    found = self.client.get_experiment_by_name(self.experiment)
        except (MlflowException, SQLAlchemyError, OSError) as error:
            raise MoesaicError(
                f"The tracking store {safe_uri(self.uri)} cannot be used: {sentence_of(error)}"
            ) from error
        if found is None:
            raise BadInput(f"The tracking store has no experiment {self.experiment!r} yet: run `moesaic run` first.")
        if found.lifecycle_stage != "active":
            raise BadInput(
                f"The experiment {self.experiment!r} was deleted in MLflow: restore it or set tracking.experiment."
            )
        return str(found.experiment_id)

    def start(self, name: str, tags: Mapping[str, str], parent: str | None = None) -> str:
        """The id of a new RUNNING run. Tags without a dot get the prefix `moesaic.`."""
        all_tags = stored_tags(tags)
        if parent is not None:
            all_tags["mlflow.parentRunId"] = parent
        return str(self.client.create_run(self.experiment_id, tags=all_tags, run_name=name).info.run_id)

    def finish(self, run_id: str, status: str, note: str | None = None) -> None:
        if note is not None:
            self.tag(run_id, {NOTE: note})
        self.client.set_terminated(run_id, status)

    def tag(self, run_id: str, tags: Mapping[str, str]) -> None:
        from mlflow.entities import RunTag

        self.client.log_batch(run_id, tags=[RunTag(k, v) for k, v in stored_tags(tags).items()], synchronous=True)

    def params(self, run_id: str, params: Mapping[str, Any]) -> None:
        from mlflow.entities import Param

        items = [Param(name, value) for name, value in stored_params(params).items()]
        for start in range(0, len(items), BATCH):
            self.client.log_batch(run_id, params=items[start : start + BATCH], synchronous=True)

    def metrics(self, run_id: str, metrics: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        items = [Metric(name, float(value), now, 0) for name, value in metrics.items()]
        if items:
            self.client.log_batch(run_id, metrics=items, synchronous=True)

    def datasets(self, run_id: str, datasets: Iterable[Dataset], context: str = LOADS) -> None:
        import json

        from mlflow.entities import Dataset as Entity
        from mlflow.entities import DatasetInput, InputTag

        inputs = [
            DatasetInput(
                Entity(
                    name=item.name,
                    digest=item.sha256[:36],
                    source_type="external",
                    source=json.dumps({"uri": item.source, "sha256": item.sha256}),
                    profile=json.dumps(dict(item.profile)),
                ),
                [InputTag("mlflow.data.context", context)],
            )
            for item in datasets
        ]
        if inputs:
            self.client.log_inputs(run_id, inputs)

    def artifacts(self, run_id: str, folder: Path) -> None:
        """Upload all files below `folder`. Where the artifacts lie on this machine, large files are linked: they need
        the disk once."""
        local = local_folder(self.run(run_id))
        if local is None:
            self.client.log_artifacts(run_id, str(folder))
            return
        for file in folder.rglob("*"):
            if file.is_file():
                target = local / file.relative_to(folder)
                target.parent.mkdir(parents=True, exist_ok=True)
                _place(file, target, linked=file.stat().st_size >= LINKED_BYTES)

    def protect(self, run_id: str) -> None:
        """Take the right to write from a run's artifacts, where they are files here: run folders link to them."""
        local = local_folder(self.run(run_id))
        for file in local.rglob("*") if local is not None else ():
            if file.is_file():
                file.chmod(0o444)

    def files(self, run: Run, folder: str = "") -> list[str]:
        """The names of all artifact files of `run`."""
        if (local := local_folder(run)) is not None:
            return [file.relative_to(local).as_posix() for file in local.rglob("*") if file.is_file()]
        found: list[str] = []
        for item in self.client.list_artifacts(run.info.run_id, folder or None):
            found += self.files(run, item.path) if item.is_dir else [item.path]
        return found

    def artifact(self, run_id: str, file: Path, folder: str | None = None) -> None:
        self.client.log_artifact(run_id, str(file), folder)

    def run(self, run_id: str) -> Run:
        return self.client.get_run(run_id)

    def find(self, prefix: str) -> Run:
        """The run whose id is or begins with `prefix`."""
        prefix = prefix.lower()
        if not prefix or not all(c in "0123456789abcdef" for c in prefix):
            raise BadInput(f"{prefix!r} is no run id: give the hexadecimal digits that it begins with.")
        found = self.search(f"attributes.run_id LIKE '{prefix}%'", limit=2)
        if not found:
            raise BadInput(f"No run of the experiment {self.experiment!r} has an id that begins with {prefix}.")
        if len(found) > 1:
            raise BadInput(f"More than one run has an id that begins with {prefix}: give more of it.")
        return found[0]

    def pipeline_run(self, run: Run) -> Run:
        """`run` itself if it is a run of the pipeline, or the one that it is a stage of."""
        kind = run.data.tags.get(f"{TAG}kind")
        if kind == "stage":
            return self.run(run.data.tags["mlflow.parentRunId"])
        if kind == "sweep":
            raise BadInput(f"{run.info.run_id[:8]} is a sweep: name one of its runs.")
        if kind != "run":
            raise BadInput(f"{run.info.run_id[:8]} is no run of moesaic.")
        return run

    def search(self, query: str, limit: int = 100) -> list[Run]:
        """Newest first."""
        return list(
            self.client.search_runs(
                [self.experiment_id], query, max_results=limit, order_by=["attributes.start_time DESC"]
            )
        )

    def fetch(self, run: Run, file: str, folder: Path) -> Path | None:
        """A local path of an artifact of `run`: where it lies if the store is local, else a download into `folder`."""
        local = local_folder(run)
        if local is not None:
            path = local / file
            return path if path.is_file() else None
        from mlflow.exceptions import MlflowException

        try:
            return Path(self.client.download_artifacts(run.info.run_id, file, str(folder)))
        except (MlflowException, OSError):
            return None


def local_folder(run: Run) -> Path | None:
    """Where the artifacts of `run` lie, if that is on this machine."""
    uri = urlparse(run.info.artifact_uri)
    return Path(unquote(uri.path)) if uri.scheme in ("", "file") else None


def link(source: Path, target: Path) -> None:
    """Make `target` the same file as `source`: a hard link, or a symbolic one where file systems differ."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        target.symlink_to(source)


def _place(source: Path, target: Path, *, linked: bool) -> None:
    """Have the content of `source` at `target`, as the same file if `linked` and both are on one file system."""
    if linked:
        target.unlink(missing_ok=True)
        with suppress(OSError):
            os.link(source, target)
            return
    shutil.copyfile(source, target)


def remove(folder: Path) -> None:
    """Remove a folder if it is there."""
    if folder.is_dir() and not folder.is_symlink():
        shutil.rmtree(folder)


def safe_uri(uri: str) -> str:
    """`uri` without a password."""
    parsed = urlparse(uri)
    return uri.replace(f":{parsed.password}@", ":***@") if parsed.password else uri


def stored_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """`tags` as the store holds them."""
    return {(name if "." in name else TAG + name): str(value)[:TAG_LIMIT] for name, value in tags.items()}


def stored_params(params: Mapping[str, Any]) -> dict[str, str]:
    """`params` as the store holds them."""
    return {name: str(value)[:PARAM_LIMIT] for name, value in params.items()}
