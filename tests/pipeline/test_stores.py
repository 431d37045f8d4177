"""Kinds of stores: which one config and environment come to, many runs on a fresh one, and no credentials anywhere."""

from __future__ import annotations

import secrets
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlparse

import pytest
from hydra import compose, initialize_config_dir

from pipeline.addresses import from_command_line, options_for, tracking_uri
from pipeline.cli import main
from pipeline.credentials import hidden
from pipeline.outbox import waits
from pipeline.schema import CONF, register, tracking_options
from pipeline.store import SQLITE, Store
from pipeline.summary import read_summary
from tests.pipeline.conftest import Toy
from tests.pipeline.servers import Postgres, postgres_binaries
from tests.pipeline.test_cli import _quiet_logging  # noqa: F401
from tests.pipeline.wire import Wire

ROOT = Path(__file__).parents[2]
SERVER = "https://mlflow.example:5000"
DATABASE = "postgresql+psycopg://db.example/runs"


@pytest.mark.parametrize(
    ("overrides", "environment", "expected"),
    [
        ([], "", "sqlite:///HERE/outputs/mlflow.db"),
        ([], SERVER, SERVER),
        ([], "postgresql://db.example/runs", DATABASE),
        (["tracking=sqlite"], SERVER, "sqlite:///HERE/outputs/mlflow.db"),
        (["tracking=sqlite", "tracking.uri=sqlite:///other.db"], SERVER, "sqlite:///HERE/other.db"),
        (["tracking=server"], SERVER, SERVER),
        (["tracking=server"], "sqlite:///other.db", "http://127.0.0.1:5000"),
        (["tracking=server", "tracking.uri=http://other:1"], SERVER, "http://other:1"),
        (["tracking=postgres"], SERVER, "postgresql+psycopg://"),
        (["tracking=postgres"], DATABASE, DATABASE),
        (["tracking=postgres", f"tracking.uri={DATABASE}"], "", DATABASE),
    ],
    ids=str,
)
def test_where_the_store_is(
    overrides: list[str], environment: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", environment)
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        options = tracking_options(compose("config", overrides))
    assert tracking_uri(options.uri, options.kind) == expected.replace("HERE", str(tmp_path))
    given = dict(override.split("=", 1) for override in overrides)
    found = from_command_line(given.get("tracking.uri"), given.get("tracking", "default"))
    assert found == tracking_uri(options.uri, options.kind)


@pytest.mark.parametrize(
    ("environment", "uri", "experiment", "expected"),
    [
        ("", "sqlite:///HERE/outputs/mlflow.db", "moesaic", ""),
        (SERVER, SERVER, "moesaic", ""),
        ("", SERVER, "moesaic", f" --tracking-uri {SERVER}"),
        (SERVER, "sqlite:///HERE/outputs/mlflow.db", "moesaic", " --tracking-uri sqlite:///HERE/outputs/mlflow.db"),
        (SERVER, SERVER, "my runs", " --experiment 'my runs'"),
        ("", "http://ann:secret@host", "moesaic", " --tracking-uri 'http://ann:***@host'"),
    ],
)
def test_what_other_commands_must_be_given(
    environment: str, uri: str, experiment: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", environment)
    here = str(tmp_path)
    assert options_for(uri.replace("HERE", here), experiment) == expected.replace("HERE", here)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("tracking.kind=oracle", "tracking.kind=oracle is not known; allowed are any, sqlite, server, postgres."),
        ("tracking=nosql", "tracking=nosql is not known; allowed are default, postgres, server, sqlite."),
        (
            "tracking=server tracking.uri=sqlite:///x.db",
            "tracking.uri=sqlite:///x.db is no address of tracking.kind=server",
        ),
    ],
)
def test_a_bad_kind_gets_one_sentence(
    override: str, sentence: str, store_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "model=tiny", *override.split()]) == 2
    assert sentence in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("kind", ["sqlite", "server", "postgres"])
def test_sixteen_runs_at_once_on_a_fresh_store(toy_of: Callable[[str], Toy], kind: str, tmp_path: Path) -> None:
    """The first to come makes the schema and the experiment; all land in it, each under its sweep."""
    toy = toy_of(kind)
    if kind == "sqlite":
        toy.uri = f"{SQLITE}{tmp_path / 'fresh' / 'mlflow.db'}"
    command = [sys.executable, "-m", "tests.pipeline.many_runs", str(tmp_path), toy.uri, toy.experiment, "16"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    store = toy.store
    runs = {run.info.run_id: run for run in store.search("", limit=1000)}
    tops = [run for run in runs.values() if run.data.tags["moesaic.kind"] == "run"]
    assert len(tops) == 16
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    for number in range(16):
        summary = read_summary(tmp_path / f"run{number}" / "summary.json")
        assert summary.status == "done"
        assert runs[runs[str(summary.run_id)].data.tags["mlflow.parentRunId"]].info.run_name == f"sweep {number}"
        for name, state in summary.stages.items():
            stage = runs[str(state.run_id)]
            parent = runs[stage.data.tags["mlflow.parentRunId"]]
            assert stage.data.tags["moesaic.stage"] == name
            assert parent.data.tags["moesaic.kind"] == "run"
            if state.state == "ran":
                assert parent.info.run_id == summary.run_id
    others = [found for found in store.client.search_experiments() if found.name == "Default"]
    assert not store.client.search_runs([found.experiment_id for found in others])


def written(*folders: Path) -> bytes:
    """All that lies in the folders, one after the other."""
    return b"".join(path.read_bytes() for folder in folders for path in sorted(folder.rglob("*")) if path.is_file())


def test_what_a_server_needs_to_let_us_in_is_nowhere_to_be_found(
    toy_of: Callable[[str], Toy],
    common: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    toy = toy_of("server")
    in_address, alone = secrets.token_hex(16), secrets.token_hex(16)
    with Wire(int(urlparse(toy.uri).port or 0)) as wire:
        address = f"http://ann:{in_address}@127.0.0.1:{wire.port}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ann")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", alone)
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
        options = ["model=tiny", "collect=synthetic", "topology=1x2", f"tracking.experiment={uuid.uuid4().hex}"]
        assert main(["run", *options, "run.last=place", "hydra.run.dir=one", "tracking=server"]) == 0
        toy.reactions = {"double ": lambda: wire.become("cut")}
        toy("tracking.uri=null")
        assert waits(toy.directory)
        assert main(["run", *options, "hydra.run.dir=two"]) == 1
        assert main(["status"]) == 1
    said = "".join(capfd.readouterr()) + caplog.text + "".join(toy.lines)
    assert "cannot be used" in said
    found = written(tmp_path, common) + said.encode()
    assert b"Tiny" in found or b"tiny" in found
    for secret in (in_address, alone):
        assert secret.encode() not in found


def test_what_a_database_needs_to_let_us_in_is_nowhere_to_be_found(
    database: Postgres,
    store_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    for name, value in database.environment.items():
        monkeypatch.setenv(name, value)
    experiment = f"test {uuid.uuid4().hex}"
    command = ["run", "model=tiny", "collect=synthetic", "topology=1x2", "run.last=place", "tracking=postgres"]
    command.append(f"tracking.experiment={experiment}")
    assert main([*command, "hydra.run.dir=one"]) == 0
    run_id = read_summary(Path("one/summary.json")).run_id
    store = Store(tracking_uri(kind="postgres"), experiment, create=False)
    told = capfd.readouterr().out
    assert f"ui --tracking-uri {store.uri} --experiment '{experiment}'" in told
    for command_line in (["status", str(run_id)], ["sync"], ["gc"]):
        assert main([*command_line, "--tracking", "postgres", "--experiment", experiment]) == 0
    assert store.run(str(run_id)).info.artifact_uri == f"file://{tmp_path}/outputs/mlartifacts/{run_id}/artifacts"
    monkeypatch.setenv("PGUSER", "nobody")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"postgresql://nobody:{database.password}@127.0.0.1:{database.port}/x")
    assert main([*command, "hydra.run.dir=two"]) == 1
    monkeypatch.setenv("PGUSER", database.user)
    said = "".join(capfd.readouterr())
    assert "cannot be used" in said
    dump = subprocess.run([f"{postgres_binaries()}/pg_dump", "--data-only"], capture_output=True, check=True)
    assert str(run_id).encode() in dump.stdout
    assert database.password.encode() not in written(tmp_path) + dump.stdout + said.encode()


@pytest.mark.parametrize("uri", ["http://ann:geheim@127.0.0.1:1", "postgresql://h/d?user=a&password=geheim"])
def test_a_password_in_config_is_refused_before_anyone_writes_it_down(
    store_file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], uri: str
) -> None:
    for more in ([], ["-m"]):
        assert main(["run", *more, "model=tiny", f"tracking.uri={uri}", "hydra.run.dir=x", "hydra.sweep.dir=y"]) == 2
    said = "".join(capfd.readouterr())
    assert "tracking.uri holds a password, and config is recorded: give it by the environment" in said
    assert b"geheim" not in written(tmp_path) + said.encode()


def test_what_is_said_holds_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:p%40ssword@host")
    monkeypatch.setenv("PGPASSWORD", "another")
    text = (
        "http://ann:p%40ssword@host/api failed for p@ssword, another and x://a:b@c?token=1 but http://host:80/a@b stays"
    )
    assert (
        hidden(text)
        == "http://ann:***@host/api failed for ***, *** and x://a:***@c?token=*** but http://host:80/a@b stays"
    )


def test_the_ui_is_told_the_address_by_its_environment(
    store_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[tuple[list[str], dict[str, str]]] = []

    def popen(command: list[str], env: dict[str, str]) -> subprocess.Popen[bytes]:
        started.append((command, env))
        return subprocess.Popen[bytes](["true"])

    from pipeline import ui

    Store(f"{SQLITE}{store_file}", "moesaic")
    monkeypatch.setattr(ui, "subprocess", SimpleNamespace(Popen=popen))
    assert main(["ui", "--port", "1"]) == 0
    ((command, environment),) = started
    assert str(store_file) not in " ".join(command)
    assert environment["MLFLOW_BACKEND_STORE_URI"] == f"{SQLITE}{store_file}"
