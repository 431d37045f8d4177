"""The tracking store goes away in the middle of a run, for real: nothing is lost, and nothing is there twice."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pytest

from pipeline import outbox
from pipeline.addresses import options_for, tracking_uri
from pipeline.cli import main
from pipeline.outbox import waits
from pipeline.runner import Request, run_pipeline
from pipeline.seal import SEAL_TAG
from pipeline.store import SQLITE, Store
from pipeline.summary import Summary, read_summary
from stages import paths
from stages.errors import MoesaicError
from tests.pipeline.conftest import Toy
from tests.pipeline.test_cli import _quiet_logging  # noqa: F401
from tests.pipeline.wire import Wire

Switch = Callable[[bool], None]
"""Takes the store away (False) and brings it back (True)."""

OWN_TAGS = ("birth", "pid", "pid_started", "heartbeat", "directory", "host", "started")
OWN_FILES = (paths.RECORD, paths.REPORT)  # full of ids and times; `test_audit_after_outage` looks at them


@pytest.fixture
def wire(request: pytest.FixtureRequest) -> Iterator[Wire]:
    with Wire(0) as wire:
        yield wire


def wire_up(toy: Toy, wire: Wire) -> None:
    """Put the wire between the pipeline and its store."""
    wire.target = int(urlparse(toy.uri).port or 0)
    toy.uri = toy.uri.replace(f":{wire.target}", f":{wire.port}")


@pytest.fixture(params=["sqlite", "server", "database", "no answers"])
def switch(request: pytest.FixtureRequest, toy_of: Callable[[str], Toy], wire: Wire) -> tuple[Toy, Switch]:
    """A toy pipeline and what takes its store away: the database file emptied, or the way to the server cut; or all
    requests arrive there, and no answer comes back."""
    if request.param == "sqlite":
        toy = toy_of("sqlite")
        file, kept = toy.folder / "outputs" / "mlflow.db", []

        def empty(there: bool) -> None:
            if there:
                file.write_bytes(kept.pop())
                with sqlite3.connect(file) as connection:  # a change, so that open connections look at it anew
                    connection.execute("PRAGMA user_version = 1")
            elif not kept:
                kept.append(file.read_bytes())
                file.write_bytes(b"")

        return toy, empty
    toy = toy_of("server" if request.param == "no answers" else request.param)
    wire_up(toy, wire)
    away: Any = "no answers" if request.param == "no answers" else "cut"
    return toy, lambda there: wire.become("whole" if there else away)


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waiting between requests that are repeated."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "0")


def picture(store: Store) -> list[Any]:
    """All that the store knows of the experiment, without ids and times."""
    runs = store.search("", limit=1000)
    names = {run.info.run_id: f"<{run.info.run_name}>" for run in runs}

    def plain(text: str) -> str:
        text = text.replace("the tracking store is away", "first run").replace(" undisturbed", "")
        for run_id, name in names.items():
            text = text.replace(run_id, name).replace(run_id[:8], name)
        text = re.sub(r"experiments/\d+", "EXPERIMENT", text)
        return re.sub(r"run\d+\b", "DIR", re.sub(r'("seconds"|"started"): [^,\n]*', "", text))

    pictured = []
    for run in runs:
        own = [f"moesaic.{name}" for name in OWN_TAGS]
        tags = {k: plain(v) for k, v in run.data.tags.items() if k not in own and not k.startswith(SEAL_TAG)}
        params = {k: plain(v) for k, v in run.data.params.items()}
        history = {
            name: [(point.value, point.step) for point in store.client.get_metric_history(run.info.run_id, name)]
            for name in run.data.metrics
        }
        files = {}
        for name in sorted(set(store.files(run)) - set(OWN_FILES)):
            path = store.fetch(run, name, Path("downloads") / run.info.run_id)
            assert path is not None
            if name == "report.html":  # it is there, and tells times
                files[name] = "a report"
                continue
            files[name] = hashlib.sha256(plain(path.read_bytes().decode(errors="replace")).encode()).hexdigest()
        sets = [(item.dataset.name, item.dataset.digest) for item in run.inputs.dataset_inputs]
        ended = run.info.end_time is not None
        pictured.append([run.info.run_name, run.info.status, ended, tags, params, history, files, sets])
    return sorted(pictured, key=lambda one: (one[0], json.dumps(one[3], sort_keys=True)))


def compare(found: list[Any], expected: list[Any]) -> None:
    assert [run[:3] for run in found] == [run[:3] for run in expected]
    for run, other in zip(found, expected, strict=True):
        for part, wanted in zip(run[3:], other[3:], strict=True):
            assert part == wanted


def undisturbed(toy: Toy) -> list[Any]:
    """What a run that sees no outage leaves, in an experiment of its own."""
    other = Toy(toy.folder, toy.uri, f"{toy.experiment} undisturbed", toy.served)
    other(directory=toy.folder / "run0")
    return picture(other.store)


def test_back_before_the_run_ends(switch: tuple[Toy, Switch], monkeypatch: pytest.MonkeyPatch) -> None:
    toy, turn = switch
    expected = undisturbed(toy)
    monkeypatch.setattr(outbox, "TRY_AGAIN_SECONDS", 0.0)
    toy.reactions = {"make ": lambda: turn(False), "sum ": lambda: turn(True)}
    summary = toy()
    assert toy.states(summary) == {"make": "ran", "double": "ran", "sum": "ran"}
    assert any("The tracking store is away" in line for line in toy.lines)
    print(*toy.lines, sep="\n")
    assert any("The tracking store is back" in line for line in toy.lines)
    assert not waits(toy.directory)
    compare(picture(toy.store), expected)
    ids = {state.run_id for state in read_summary(toy.directory / "summary.json").stages.values()}
    assert {toy.store.run(str(run_id)).info.status for run_id in ids} == {"FINISHED"}


def test_away_until_after_the_run(switch: tuple[Toy, Switch], capsys: pytest.CaptureFixture[str]) -> None:
    toy, turn = switch
    expected = undisturbed(toy)
    folder, run_id = away_at_double(toy, turn)
    turn(True)
    assert toy.store.run(run_id).info.status == "RUNNING"
    store = ["--tracking-uri", toy.uri, "--experiment", toy.experiment]
    assert main(["sync", run_id[:12], *store]) == 0
    assert "writes delivered" in capsys.readouterr().out
    assert main(["sync", run_id[:12], *store]) == 0
    assert "Nothing waits" in capsys.readouterr().out
    assert not (folder / ".unsent").exists()
    compare(picture(toy.store), expected)


def away_at_double(toy: Toy, turn: Switch) -> tuple[Path, str]:
    """A run that loses its store at its second stage, and goes on: its folder and id."""
    toy.reactions = {"double ": lambda: turn(False)}
    summary = toy()
    folder = toy.directory
    assert summary.status == "done"
    assert toy.lines[-1].startswith("The tracking store is still away (")
    assert toy.lines[-1].endswith(
        f"). Once it is back: moesaic sync {folder}{options_for(tracking_uri(toy.uri), toy.experiment)}"
    )
    assert json.loads((folder / "sum" / "sum.json").read_text()) == 6.0
    assert waits(folder)
    return folder, str(summary.run_id)


@pytest.mark.parametrize("switch", ["sqlite"], indirect=True)
@pytest.mark.parametrize("way", ["sync", "sync DIR", "the next run", "the same folder"])
def test_other_ways_to_bring_it_back(switch: tuple[Toy, Switch], way: str) -> None:
    toy, turn = switch
    folder, run_id = away_at_double(toy, turn)
    turn(True)
    if way.startswith("sync"):
        named = [str(folder)] if way == "sync DIR" else []
        assert main(["sync", *named, "--tracking-uri", toy.uri]) == 0
    else:
        again = toy(directory=folder if way == "the same folder" else None)
        assert toy.states(again) == {"make": "cached", "double": "cached", "sum": "cached"}
    assert not (folder / ".unsent").exists()
    assert toy.store.run(run_id).info.status == "FINISHED"
    stages = toy.store.search(f"tags.`mlflow.parentRunId` = '{run_id}'")
    assert sorted((run.info.run_name, run.info.status) for run in stages) == [
        ("double", "FINISHED"), ("make", "FINISHED"), ("sum", "FINISHED"),
    ]  # fmt: skip


def test_what_became_of_a_database_is_said(local_toy: Toy) -> None:
    local_toy.reactions = {"double ": lambda: (local_toy.folder / "outputs").rename(local_toy.folder / "away")}
    local_toy()
    assert "autoflush" not in local_toy.lines[-1]
    assert "(sqlite3.OperationalError) " in local_toy.lines[-1]


def test_artifacts_wait_for_a_disk_that_went_away(local_toy: Toy, capsys: pytest.CaptureFixture[str]) -> None:
    """Its folder is not made anew where it was mounted: what is written there nobody finds once it is back."""
    disk, away = local_toy.folder / "disk", local_toy.folder / "away"
    artifacts = f"tracking.artifact_location={disk / 'artifacts'}"
    local_toy.reactions = {"double ": lambda: Path(disk.rename(away)) and disk.mkdir()}
    run_id = str(local_toy(artifacts).run_id)
    assert local_toy.lines[-1].startswith(f"The tracking store is still away (No such file or directory: {disk}")
    assert list(disk.iterdir()) == []
    assert local_toy("seed=1", artifacts).status == "done"  # begun without it
    assert list(disk.iterdir()) == []
    disk.rmdir()
    away.rename(disk)
    assert main(["sync", "--tracking-uri", local_toy.uri]) == 0
    for run in local_toy.store.search("tags.`moesaic.kind` = 'run'"):
        assert main(["audit", run.info.run_id, "--tracking-uri", local_toy.uri]) == 0
    assert main(["audit", run_id, "--tracking-uri", local_toy.uri]) == 0


def test_a_sweep_goes_on_without_its_store(
    toy_of: Callable[[str], Toy], wire: Wire, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipeline import app

    toy = toy_of("server")
    wire_up(toy, wire)
    begun: list[str] = []

    def counted(request: Request) -> Summary:
        begun.append(str(request.directory))
        if len(begun) == 2:
            wire.become("cut")
        return run_pipeline(request)

    monkeypatch.setattr(app, "run_pipeline", counted)
    sweep = ["run", "-m", "model=tiny", "collect=synthetic", "topology=1x2,2x2", "place.redundant_experts=0,4"]
    store = [f"tracking.uri={toy.uri}", f"tracking.experiment={toy.experiment}"]
    assert main([*sweep, "run.last=place", "hydra.sweep.dir=swept", *store]) == 0
    assert (
        capsys.readouterr()
        .out.splitlines()[-2]
        .endswith(f"moesaic sync {toy.folder / 'swept'}{options_for(toy.uri, toy.experiment)}")
    )
    assert not Path("swept/comparison.csv").exists()
    wire.become("whole")
    parent = json.loads(Path("swept/sweep.json").read_text())["run_id"]
    assert main(["sync", parent[:10], "--tracking-uri", toy.uri, "--experiment", toy.experiment]) == 0
    assert toy.store.run(parent).info.status == "FINISHED"
    points = toy.store.search(f"tags.`mlflow.parentRunId` = '{parent}'")
    assert [point.info.status for point in points] == ["FINISHED"] * 4
    for number in range(4):
        summary = read_summary(Path(f"swept/{number}/summary.json"))
        assert summary.run_id in {point.info.run_id for point in points}
        states = [state for state in summary.stages.values() if state.state == "ran"]
        assert {toy.store.run(str(state.run_id)).data.tags["mlflow.parentRunId"] for state in states} <= {
            summary.run_id
        }
    assert toy.store.run(parent).data.metrics["points"] == 4
    assert len(Path("swept/comparison.csv").read_text().splitlines()) == 5


def test_a_sweep_says_which_points_failed_without_its_store(
    toy_of: Callable[[str], Toy], wire: Wire, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By what they left in their folders; a comparison of before does not stay."""
    from pipeline import app

    toy = toy_of("server")
    wire_up(toy, wire)

    def cut(request: Request) -> Summary:
        wire.become("cut")
        return run_pipeline(request)

    monkeypatch.setattr(app, "run_pipeline", cut)
    store = [f"tracking.uri={toy.uri}", f"tracking.experiment={toy.experiment}"]
    words = ["run", "-m", "model=tiny", "collect=synthetic", "place.redundant_experts=0,-1", "run.last=place"]
    Path("swept").mkdir()
    Path("swept/comparison.csv").write_text("of before\n")
    assert main([*words, "topology=1x2", "hydra.sweep.dir=swept", *store]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("1 of the sweep's runs failed, the last with: ")
    assert not Path("swept/comparison.csv").exists()
    wire.become("whole")
    parent = json.loads(Path("swept/sweep.json").read_text())["run_id"]
    options = ["--tracking-uri", toy.uri, "--experiment", toy.experiment]
    assert main(["sync", "swept", *options]) == 0
    assert toy.store.run(parent).info.status == "FAILED"
    points = toy.store.search(f"tags.`mlflow.parentRunId` = '{parent}'")
    assert sorted(point.info.status for point in points) == ["FAILED", "FINISHED"]
    assert "redundant_experts" in Path("swept/comparison.csv").read_text()
    assert main(["audit", parent, *options]) == 0, capsys.readouterr().out


def test_a_run_that_is_killed_while_the_store_is_away(toy_of: Callable[[str], Toy], wire: Wire) -> None:
    toy = toy_of("server")
    wire_up(toy, wire)
    code = toy.code("double.fail=kill", name="killed")
    code = code.replace("toy(*", "toy.reactions = {'double ': lambda: (print('cut', flush=True), input())}; toy(*")
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == "cut\n"
    wire.become("cut")
    process.communicate("go\n", timeout=120)
    assert process.returncode == -9
    assert waits(toy.folder / "killed")
    wire.become("whole")
    with (toy.folder / "killed" / ".unsent" / "writes.jsonl").open("a") as stream:
        stream.write('{"kind": "batch", "run_')  # as if it had been killed while it wrote
    summary = toy()
    assert toy.states(summary) == {"make": "cached", "double": "ran", "sum": "ran"}
    assert not waits(toy.folder / "killed")
    runs = toy.store.search("")
    assert sorted((run.info.run_name, run.info.status) for run in runs) == [
        ("NonexNone", "FINISHED"), ("NonexNone double.fail=kill", "KILLED"), ("double", "FINISHED"),
        ("double", "KILLED"), ("make", "FINISHED"), ("sum", "FINISHED"),
    ]  # fmt: skip


def test_nothing_is_touched_in_a_folder_whose_record_cannot_be_delivered(
    toy_of: Callable[[str], Toy], migrated: Path, tmp_path: Path
) -> None:
    toy = toy_of("sqlite")
    file = toy.folder / "outputs" / "mlflow.db"
    toy.reactions = {"double ": lambda: bool(file.write_bytes(b""))}
    toy()
    folder = toy.directory
    toy.uri = f"{SQLITE}{shutil.copy(migrated, tmp_path / 'other.db')}"  # the store is gone for good
    with pytest.raises(MoesaicError, match=r"What waits in .* cannot be delivered .*: nothing is lost"):
        toy("seed=1", directory=folder)
    assert json.loads((folder / "sum" / "sum.json").read_text()) == 6.0
    assert waits(folder)


def test_what_the_store_refuses_by_right_ends_the_run(toy_of: Callable[[str], Toy]) -> None:
    from mlflow.exceptions import MlflowException

    store = toy_of("sqlite").store.kept_in(Path("somewhere"), print)
    run_id = store.start("a run", {})
    store.params(run_id, {"a": 1})
    with pytest.raises(MlflowException):
        store.params(run_id, {"a": 2})
    assert not waits(Path("somewhere"))
