"""The tracking store: one MLflow experiment, seen through what the pipeline needs of it.

Only the client API is used: no active run, nothing global, so that several runs can go on in one process.
"""

from __future__ import annotations

import copy
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from filelock import FileLock

from pipeline import addresses, writes
from pipeline.addresses import DEFAULT_STORE, POSTGRES
from pipeline.credentials import hidden
from pipeline.outbox import Outbox
from pipeline.sqlite_journal import keep_journals
from pipeline.writes import Write, batch_of, deliver, local_folder, tags_of
from stages.contract import Dataset
from stages.errors import BadInput, MoesaicError, sentence_of

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # MLflow's seven take minutes on a server that is gone
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
logging.getLogger("alembic").setLevel(logging.WARNING)
logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # it logs a stack for what is raised as well

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

    from pipeline.schema import TrackingOptions

SQLITE, tracking_uri = addresses.SQLITE, addresses.tracking_uri
TAG = writes.TAG
NOTE = "mlflow.note.content"
LOADS = "loads"
GONE = "RESOURCE_DOES_NOT_EXIST"
"""What MLflow says of a run that is not there; whatever else it says, the store cannot be asked."""
OTHERWISE = ", or name another store (tracking.uri, --tracking-uri or MLFLOW_TRACKING_URI)."
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}  # the UI then opens on the runs


class Store:
    """`experiment_id` is that of the experiment named; runs are MLflow runs with `moesaic.*` tags."""

    def __init__(self, uri: str, experiment: str, artifact_location: str | None = None, *, create: bool = True) -> None:
        self.uri = uri
        self.experiment = experiment
        self.outbox: Outbox | None = None
        if uri.startswith(SQLITE):
            path = Path(uri.removeprefix(SQLITE))
            if not create and not path.exists():
                raise BadInput(
                    f"There is no tracking store at {path}: run `moesaic run` first, or set MLFLOW_TRACKING_URI."
                )
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.with_suffix(".lock").open("ab").close()  # where that cannot be, the lock below would try for ever
            except OSError as error:
                raise MoesaicError(f"The tracking store cannot be made: {sentence_of(error)}{OTHERWISE}") from error
            artifact_location = artifact_location or (path.parent.absolute() / "mlartifacts").as_uri()
            # The first client migrates the schema and names the experiment; several at once would break both.
            with FileLock(path.with_suffix(".lock")):
                self.experiment_id = self._experiment(artifact_location, create)
        elif uri.startswith(POSTGRES):
            artifact_location = artifact_location or (DEFAULT_STORE.parent / "mlartifacts").absolute().as_uri()
            with self._alone():
                self.experiment_id = self._experiment(artifact_location, create)
        else:
            self.experiment_id = self._experiment(artifact_location, create)

    @classmethod
    def unseen(cls, uri: str, experiment: str, experiment_id: str) -> Self:
        """A store that is away, with an experiment that others made: it is not asked for anything yet."""
        store = cls.__new__(cls)
        store.uri, store.experiment, store.experiment_id, store.outbox = uri, experiment, experiment_id, None
        return store

    @cached_property
    def client(self) -> MlflowClient:
        from mlflow import MlflowClient

        if self.uri.startswith(SQLITE):
            keep_journals()
        return MlflowClient(self.uri)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """On a PostgreSQL database: one at a time, whatever host it runs on, may make the schema and the experiment."""
        from sqlalchemy import create_engine, text
        from sqlalchemy.exc import SQLAlchemyError
        from sqlalchemy.pool import NullPool

        try:
            engine = create_engine(self.uri, poolclass=NullPool)
            with engine.connect() as connection:
                connection.execute(text("SELECT pg_advisory_lock(hashtext('moesaic'))"))
                yield
        except (SQLAlchemyError, ImportError) as error:
            raise self._unusable(error) from error

    def _unusable(self, error: Exception) -> MoesaicError:
        unheard = "NewConnectionError" in str(error)
        told = hidden(sentence_of(error)).rstrip(".")
        why = "nobody answers there; start the server" if unheard else f"{told}; mend that"
        return MoesaicError(f"The tracking store {hidden(self.uri)} cannot be used: {why}{OTHERWISE}")

    def _experiment(self, artifact_location: str | None, create: bool) -> str:
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        try:
            found = self.client.get_experiment_by_name(self.experiment)
            if found is None and create:
                with suppress(MlflowException):  # another process was first
                    self.client.create_experiment(self.experiment, artifact_location, tags=EXPERIMENT_TAGS)
                found = self.client.get_experiment_by_name(self.experiment)
            if found is not None and create:
                writes.make_room(self.client, found, self.uri)
        except (MlflowException, SQLAlchemyError, OSError) as error:
            raise self._unusable(error) from error
        if found is None:
            raise BadInput(f"The tracking store has no experiment {self.experiment!r} yet: run `moesaic run` first.")
        if found.lifecycle_stage != "active":
            raise BadInput(
                f"The experiment {self.experiment!r} was deleted in MLflow: restore it or set tracking.experiment."
            )
        return str(found.experiment_id)

    def kept_in(self, directory: Path, tell: Callable[[str], None]) -> Self:
        """This store as the run in `directory` writes to it: while it is away, what is written waits there."""
        kept = copy.copy(self)
        kept.outbox = Outbox(directory, lambda write, again: deliver(self.client, write, again=again), tell)
        return kept

    def _write(self, write: Write) -> str:
        return self.outbox.send(write) if self.outbox else deliver(self.client, write)

    def start(self, name: str, tags: Mapping[str, str], parent: str | None = None) -> str:
        """The id of a new RUNNING run. Tags without a dot get the prefix `moesaic.`."""
        all_tags = tags_of(tags)
        if parent is not None:
            all_tags["mlflow.parentRunId"] = parent
        return self._write(writes.start(self.experiment_id, name, all_tags))

    def finish(
        self,
        run_id: str,
        status: str,
        *,
        metrics: Mapping[str, float] | None = None,
        tags: Mapping[str, str] | None = None,
        at: int | None = None,
    ) -> None:
        """`metrics`, `tags`: what is left to say of the run. `at`: when it ended, in milliseconds, if not now."""
        self.log(run_id, metrics=metrics, tags=tags)
        self._write(Write("finish", run_id, {"status": status}, at or writes.now_ms()))

    def log(
        self,
        run_id: str,
        *,
        params: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] | None = None,
        series: Mapping[str, Sequence[float]] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """All in as few requests as can be. `series`: by metric, its value at step 0, 1, …"""
        data = batch_of(params, metrics, series, tags)
        if any(data.values()):
            self._write(Write("batch", run_id, data))

    def tag(self, run_id: str, tags: Mapping[str, str]) -> None:
        self.log(run_id, tags=tags)

    def params(self, run_id: str, params: Mapping[str, Any]) -> None:
        self.log(run_id, params=params)

    def metrics(self, run_id: str, metrics: Mapping[str, float]) -> None:
        self.log(run_id, metrics=metrics)

    def datasets(self, run_id: str, datasets: Iterable[Dataset], context: str = LOADS) -> None:
        """`context`: what they are to the run."""
        if items := [asdict(item) for item in datasets]:
            self._write(Write("datasets", run_id, {"datasets": items, "context": context}))

    def artifacts(self, run_id: str, folder: Path, *, protect: bool = False) -> None:
        """Upload all files below `folder`. `protect`: take the right to write from them where they are files here,
        since run folders will link to them."""
        self._write(Write("files", run_id, {"source": str(folder), "protect": protect}))

    def artifact(self, run_id: str, file: Path, folder: str | None = None) -> None:
        self._write(Write("files", run_id, {"source": str(file), "folder": folder}))

    def files(self, run: Run, folder: str = "") -> list[str]:
        """The names of all artifact files of `run`."""
        if (local := local_folder(run)) is not None:
            return [file.relative_to(local).as_posix() for file in local.rglob("*") if file.is_file()]
        found: list[str] = []
        for item in self.client.list_artifacts(run.info.run_id, folder or None):
            found += self.files(run, item.path) if item.is_dir else [item.path]
        return found

    def run(self, run_id: str) -> Run:
        return self.client.get_run(run_id)

    def find(self, prefix: str) -> Run:
        """The run whose id is or begins with `prefix`."""
        prefix = prefix.lower()
        if not prefix or not all(c in "0123456789abcdef" for c in prefix):
            raise BadInput(f"{prefix!r} is no run id: give the hexadecimal digits that it begins with.")
        found = self.search(f"attributes.run_id LIKE '{prefix}%'", limit=2)
        if not found:
            if self.search(f"attributes.run_id LIKE '{prefix}%'", limit=1, deleted=True):
                raise BadInput(f"Run {prefix[:8]} was deleted in MLflow: restore it there first.")
            raise BadInput(f"No run of the experiment {self.experiment!r} has an id that begins with {prefix}.")
        if len(found) > 1:
            raise BadInput(f"More than one run has an id that begins with {prefix}: give more of it.")
        return found[0]

    def pipeline_or_sweep(self, run: Run) -> Run:
        """`run` itself if it is a run of the pipeline or a sweep, or the one that it is a stage of."""
        kind = run.data.tags.get(f"{TAG}kind")
        if kind == "stage":
            return self.run(run.data.tags["mlflow.parentRunId"])
        if kind not in ("run", "sweep"):
            raise BadInput(f"{run.info.run_id[:8]} is no run of moesaic.")
        return run

    def pipeline_run(self, run: Run) -> Run:
        """`run` itself if it is a run of the pipeline, or the one that it is a stage of."""
        found = self.pipeline_or_sweep(run)
        if found.data.tags.get(f"{TAG}kind") == "sweep":
            raise BadInput(f"{run.info.run_id[:8]} is a sweep: name one of its runs.")
        return found

    def search(self, query: str, limit: int = 100, *, deleted: bool = False) -> list[Run]:
        """Newest first. `deleted`: those alone that a person deleted."""
        from mlflow.entities import ViewType

        view = ViewType.DELETED_ONLY if deleted else ViewType.ACTIVE_ONLY
        order = ["attributes.start_time DESC"]
        return list(self.client.search_runs([self.experiment_id], query, view, limit, order))

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


S = TypeVar("S", bound=Store)


def open_store(options: TrackingOptions, experiment_id: str | None = None, kind: type[S] = Store) -> S:  # type: ignore[assignment]
    """The store of the config; where the experiment is known, even if the store is away."""
    uri = tracking_uri(options.uri, options.kind)
    try:
        return kind(uri, options.experiment, options.artifact_location)
    except BadInput:
        raise
    except MoesaicError:
        if experiment_id is None:
            raise
        return kind.unseen(uri, options.experiment, experiment_id)


def link(source: Path, target: Path) -> None:
    """Make `target` the same file as `source`: a hard link, or a symbolic one where file systems differ."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        target.symlink_to(source)


def remove(folder: Path) -> None:
    """Remove a folder if it is there."""
    if folder.is_dir() and not folder.is_symlink():
        shutil.rmtree(folder)
