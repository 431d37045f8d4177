"""`moesaic gc`: what goes, what stays because a kept run needs it, and that a dry run touches nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mlflow.entities import ViewType

from pipeline.cli import main
from pipeline.gc import freed
from pipeline.needed import DAY_MS, Fact, not_needed
from pipeline.seal import REMOVED, SEAL_TAG
from pipeline.store import SQLITE, Store
from tests.pipeline.conftest import Toy

NOW = 100 * DAY_MS


def run(run_id: str, *uses: str, deleted: bool = False, status: str = "FINISHED", age: float = 1.0, parent: str = "") -> Fact:  # fmt: skip
    ended = None if status == "RUNNING" else int(NOW - age * DAY_MS)
    return Fact(run_id, "run", deleted, status, ended, parent or None, frozenset(uses))


def stage(run_id: str, parent: str, status: str = "FINISHED") -> Fact:
    return Fact(run_id, "stage", False, status, NOW, parent)


def swept(run_id: str, *, deleted: bool = False, age: float = 1.0) -> Fact:
    return Fact(run_id, "sweep", deleted, "FINISHED", int(NOW - age * DAY_MS))


@pytest.mark.parametrize(
    ("facts", "options", "remove", "rescued"),
    [
        pytest.param([run("a", "s"), stage("s", "a")], {}, [], {}, id="a kept run keeps its stages"),
        pytest.param([run("a", "s", deleted=True), stage("s", "a")], {}, ["a", "s"], {}, id="a deleted one does not"),
        pytest.param(
            [run("a", "s", "t", deleted=True), stage("s", "a"), stage("t", "a"), run("b", "s")],
            {}, [], {"a": "b"}, id="unless another run shows the result",
        ),
        pytest.param(
            [run("a", "s", deleted=True), stage("s", "a"), run("b", "s", deleted=True)],
            {}, ["a", "b", "s"], {}, id="which must be a kept one",
        ),
        pytest.param([stage("s", "gone"), run("b", "s")], {}, [], {}, id="a stage of use needs no parent"),
        pytest.param([stage("s", "gone")], {}, ["s"], {}, id="one of no use goes"),
        pytest.param([stage("s", "gone", status="RUNNING")], {}, [], {}, id="one that runs stays"),
        pytest.param(
            [run("a", "s", age=9), stage("s", "a"), run("b", "t", age=2), stage("t", "b")],
            {"days": 7}, ["a", "s"], {}, id="old",
        ),
        pytest.param([run("a", age=9), run("b", status="RUNNING", deleted=True)], {}, [], {}, id="old is not enough"),
        pytest.param(
            [run("a", status="FAILED"), run("b", status="KILLED"), run("c"), run("d", status="RUNNING")],
            {"failed": True}, ["a", "b"], {}, id="failed",
        ),
        pytest.param([swept("w", deleted=True), run("a", parent="w")], {}, ["w"], {}, id="points outlive their sweep"),
        pytest.param(
            [swept("w", age=9), run("a", parent="w", age=9), run("b", parent="w", age=1)],
            {"days": 7}, ["a"], {}, id="an old sweep stays for its points",
        ),
        pytest.param(
            [swept("w", age=9), run("a", parent="w", age=9)], {"days": 7}, ["a", "w"], {}, id="and goes with them"
        ),
        pytest.param([Fact("x", "other", True, "FINISHED", NOW)], {"days": 0}, [], {}, id="what others logged"),
    ],
)  # fmt: skip
def test_what_no_kept_run_needs(
    facts: list[Fact], options: dict[str, float], remove: list[str], rescued: dict[str, str]
) -> None:
    found = not_needed(facts, NOW, **options)  # type: ignore[arg-type]
    assert (found.remove, found.rescued) == (remove, rescued)


def gc(toy: Toy, *options: str) -> int:
    return main(["gc", "--tracking-uri", toy.uri, "--experiment", toy.experiment, *options])


def ids(toy: Toy) -> set[str]:
    found = toy.store.client.search_runs([toy.store.experiment_id], "", ViewType.ALL)
    return {run.info.run_id for run in found if run.info.lifecycle_stage == "active"}


def files_below(*folders: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for folder in folders for path in folder.rglob("*") if path.is_file()}


def test_it_shows_and_then_removes_what_a_deleted_run_alone_needed(
    toy: Toy, capsys: pytest.CaptureFixture[str]
) -> None:
    first = toy()
    second = toy("double.factor=3")
    assert second.stages["make"].state == "cached"
    other = toy("seed=5")
    folders = {name: toy.folder / f"run{number}" for number, name in enumerate(("first", "second", "other"), 1)}
    (folders["other"] / "notes.txt").write_text("mine")
    for one in (first, second, other):
        toy.store.client.delete_run(str(one.run_id))
    toy.store.client.restore_run(str(second.run_id))  # it took `make` of the first, which is thereby kept
    stored = toy.stored(other.stages["sum"].run_id)
    assert stored.is_dir()
    before, known = files_below(toy.folder), ids(toy)
    capsys.readouterr()

    assert gc(toy) == 0
    out = capsys.readouterr().out
    assert "To remove: 1 runs, 3 stages; " in out
    assert f"{str(first.run_id)[:8]}  stays     run {str(second.run_id)[:8]} took a stage of it" in out
    assert "Nothing was touched: call it again with --delete." in out
    assert ids(toy) == known
    assert {path: time for path, time in files_below(toy.folder).items() if path in before} == before

    assert gc(toy, "--delete") == 0
    assert "Removed: 1 runs, 3 stages; " in capsys.readouterr().out
    gone = {str(state.run_id) for state in other.stages.values()}
    assert ids(toy) == known - gone
    assert not list(stored.rglob("*.json"))
    assert [path.name for path in folders["other"].iterdir()] == ["notes.txt"]
    assert json.loads((folders["second"] / "sum" / "sum.json").read_text()) == 9.0
    assert toy.states(toy("double.factor=3")) == {"make": "cached", "double": "cached", "sum": "cached"}
    assert toy.states(toy("seed=5", "run.last=make")) == {"make": "ran", "double": "skipped", "sum": "skipped"}


def test_failed_runs_go_if_asked_for_and_their_finished_stages_with_them(local_toy: Toy) -> None:
    with pytest.raises(ZeroDivisionError):
        local_toy("double.fail=crash")
    folder = local_toy.directory
    kept = local_toy("seed=3")
    assert gc(local_toy, "--delete") == 0
    assert len(ids(local_toy)) == 7
    assert gc(local_toy, "--delete", "--failed") == 0
    assert ids(local_toy) == {str(kept.run_id), *(str(state.run_id) for state in kept.stages.values())}
    assert not folder.exists()
    assert local_toy.directory.exists()


def test_what_a_run_took_stays_while_it_goes_on(toy: Toy, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ZeroDivisionError):
        toy("double.fail=crash")
    toy.reactions["double   runs"] = lambda: gc(toy, "--delete", "--failed")
    summary = toy()
    assert summary.stages["make"].state == "cached"
    assert toy.store.run(str(summary.stages["make"].run_id)).info.lifecycle_stage == "active"
    assert f"stays     run {str(summary.run_id)[:8]} took a stage of it" in capsys.readouterr().out
    assert main(["audit", str(summary.run_id), "--tracking-uri", toy.uri, "--experiment", toy.experiment]) == 0


def test_a_sweep_that_stays_knows_which_of_its_points_went(
    store_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = ["run", "-m", "model=tiny", "topology=1x2", "collect=synthetic,table", "run.last=collect"]
    assert main(sweep) == 2
    store = Store(f"{SQLITE}{store_file}", "moesaic")
    (parent,) = store.search("tags.`moesaic.kind` = 'sweep'")
    good, bad = sorted(store.search("tags.`moesaic.kind` = 'run'"), key=lambda run: int(run.data.tags["moesaic.point"]))
    store.tag(parent.info.run_id, {f"{REMOVED}{good.info.run_id}": "by a gc that was interrupted"})
    assert main(["audit", parent.info.run_id]) == 0
    assert "note: of the points" not in capsys.readouterr().out
    assert main(["gc", "--failed", "--delete"]) == 0
    capsys.readouterr()
    assert main(["audit", parent.info.run_id, "--seal", parent.data.tags[SEAL_TAG]]) == 0
    told = f"note: of the points that it compared `moesaic gc` removed 1: {bad.info.run_id[:8]}"
    assert told in capsys.readouterr().out
    store.client.delete_tag(parent.info.run_id, f"{REMOVED}{good.info.run_id}")
    store.client.delete_run(good.info.run_id)  # by a person
    assert main(["audit", parent.info.run_id]) == 3
    assert "it had 2 points, and 0 are there" in capsys.readouterr().err


def test_what_is_freed_counts_a_file_once_and_only_with_all_its_links(tmp_path: Path) -> None:
    for name in ("a", "b", "kept"):
        (tmp_path / name).mkdir()
    (tmp_path / "a" / "alone").write_bytes(bytes(1))
    (tmp_path / "a" / "twice").write_bytes(bytes(10))
    (tmp_path / "b" / "twice").hardlink_to(tmp_path / "a" / "twice")
    (tmp_path / "a" / "shared").write_bytes(bytes(100))
    (tmp_path / "kept" / "shared").hardlink_to(tmp_path / "a" / "shared")
    assert freed([tmp_path / "a", tmp_path / "b"]) == 11
    assert freed([tmp_path / "a"]) == 1
