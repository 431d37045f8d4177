"""A toy pipeline, declared by config alone, run for real against SQLite."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from pipeline.points import Point
from pipeline.progress.view import Lines as View
from pipeline.runner import Request, run_pipeline
from pipeline.store import SQLITE, Store
from pipeline.summary import Summary
from tests.pipeline.servers import Postgres, postgres_binaries, postgres_told, shared, tracking_server

TOY = {
    "pipeline": {
        "stages": {
            "make": {
                "target": "tests.pipeline.toy.stages.make",
                "config": ["make", "seed"],
                "outputs": ["numbers.json"],
            },
            "double": {
                "target": "tests.pipeline.toy.stages.double",
                "config": ["double"],
                "inputs": {"numbers": "make/numbers.json"},
                "outputs": ["doubled.json"],
            },
            "sum": {
                "target": "tests.pipeline.toy.stages.add_up",
                "inputs": {"doubled": "double/doubled.json"},
                "outputs": ["sum.json"],
            },
        }
    },
    "make": {"count": 3},
    "double": {},
    "seed": 0,
    "run": {},
    "tracking": {},
}


class Toy:
    """Runs the toy pipeline; `lines` are what the last run said. `served`: where a tracking server keeps artifacts."""

    def __init__(self, folder: Path, uri: str = "", experiment: str = "moesaic", served: Path | None = None) -> None:
        self.folder = folder
        self.uri = uri or f"{SQLITE}{folder / 'outputs' / 'mlflow.db'}"
        self.experiment = experiment
        self.served = served
        self.runs = 0
        self.parent: str | None = None
        self.lines: list[str] = []
        self.reactions: dict[str, Callable[[], None]] = {}
        """What the next run sets off as soon as it says a line that begins so."""

    def __call__(self, *overrides: str, directory: Path | None = None) -> Summary:
        self.runs += 1
        self.lines = Lines(self.reactions)
        self.reactions = {}
        self.directory = directory or self.folder / f"run{self.runs}"
        config = OmegaConf.merge(OmegaConf.create(TOY), OmegaConf.from_dotlist(list(overrides)))
        config.tracking = {"uri": self.uri, "experiment": self.experiment, **config.tracking}
        view, point = View(self.lines.append), Point(self.folder, 0, self.parent) if self.parent else None
        return run_pipeline(Request(config, self.directory, list(overrides), view, point))

    def states(self, summary: Summary) -> dict[str, str]:
        return {name: stage.state for name, stage in summary.stages.items()}

    @property
    def store(self) -> Store:
        return Store(self.uri, self.experiment)

    def stored(self, run_id: str | None) -> Path:
        """Where the artifacts of a run really lie."""
        run = self.store.run(str(run_id))
        if self.served is None:
            return Path(run.info.artifact_uri.removeprefix("file://"))
        return self.served / run.info.artifact_uri.removeprefix("mlflow-artifacts:/")

    def code(self, *overrides: str, name: str) -> str:
        """Python that runs the same in another process, in the folder `name`."""
        return (
            "from pathlib import Path; from tests.pipeline.conftest import Toy; "
            f"toy = Toy(Path({str(self.folder)!r}), {self.uri!r}, {self.experiment!r}); "
            f"toy(*{list(overrides)!r}, directory=Path({str(self.folder / name)!r}))"
        )


class Lines(list[str]):
    def __init__(self, reactions: dict[str, Callable[[], None]]) -> None:
        super().__init__()
        self.reactions = reactions

    def append(self, line: str) -> None:
        super().append(line)
        for beginning, react in self.reactions.items():
            if line.startswith(beginning):
                react()


@pytest.fixture
def local_toy(store_file: Path) -> Toy:
    """With a fresh SQLite store."""
    return Toy(store_file.parent.parent)


@pytest.fixture
def toy_of(request: pytest.FixtureRequest, store_file: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Toy]:
    """By kind: with a fresh SQLite store, or a new experiment of a tracking server on SQLite or PostgreSQL, or of the
    database itself."""

    def make(kind: str) -> Toy:
        if kind == "sqlite":
            return Toy(store_file.parent.parent)
        experiment = f"test {uuid.uuid4().hex}"
        if kind == "database":
            database: Postgres = request.getfixturevalue("database")
            monkeypatch.setenv("PGPASSWORD", database.password)
            return Toy(store_file.parent.parent, database.open_uri, experiment)
        url, served = request.getfixturevalue(f"{kind}_server")
        return Toy(store_file.parent.parent, url, experiment, served)

    return make


@pytest.fixture(params=["sqlite", "server", "postgres"])
def toy(request: pytest.FixtureRequest, toy_of: Callable[[str], Toy]) -> Toy:
    """The toy pipeline with each kind of store."""
    return toy_of(request.param)


Server = tuple[str, Path]
"""The URL of a tracking server, and the folder where it keeps artifacts."""


@pytest.fixture(scope="session")
def common(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this run of the tests, the same in all its processes."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def database(common: Path) -> Iterator[Postgres]:
    """A PostgreSQL server for all tests."""
    if postgres_binaries() is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    with shared(common, "postgres", postgres_told) as told:
        yield Postgres(**json.loads(told))


@pytest.fixture(scope="session")
def server_server(common: Path, migrated: Path) -> Iterator[Server]:
    """A tracking server on SQLite that serves artifacts."""

    def start() -> AbstractContextManager[str]:
        file = shutil.copy(migrated, common / "server.db")
        return tracking_server(common, f"{SQLITE}{file}", "server")

    with shared(common, "server", start) as url:
        yield url, common / "server"


@pytest.fixture(scope="session")
def postgres_server(common: Path, database: Postgres) -> Iterator[Server]:
    """A tracking server on PostgreSQL that serves artifacts."""
    with shared(common, "postgres-server", lambda: tracking_server(common, database.uri, "postgres-server")) as url:
        yield url, common / "postgres-server"
