"""The runner on a toy pipeline: checkpoints, reasons, parts of the pipeline, failures, and what the store then holds."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from filelock import FileLock

from pipeline.summary import read_summary
from pipeline.writes import local_folder
from stages.errors import BadInput, Corruption, MoesaicError
from tests.pipeline.conftest import Toy

ALL_RAN = {"make": "ran", "double": "ran", "sum": "ran"}
ALL_CACHED = {"make": "cached", "double": "cached", "sum": "cached"}


def test_runs_then_takes_everything_from_checkpoints(toy: Toy) -> None:
    first = toy()
    assert toy.states(first) == ALL_RAN
    assert toy.lines == ["make     runs    (first run)", "double   runs    (first run)", "sum      runs    (first run)"]
    assert first.status == "done"
    second = toy()
    assert toy.states(second) == ALL_CACHED
    assert second.run_id != first.run_id
    for name, stage in second.stages.items():
        assert stage.run_id == first.stages[name].run_id
        assert stage.metrics == first.stages[name].metrics
        assert stage.why == f"run {str(stage.run_id)[:8]}"
    assert second.stages["double"].metrics == {"total": 6.0}
    assert json.loads((toy.directory / "sum" / "sum.json").read_text()) == 6.0


def test_cached_outputs_are_links_into_the_store(local_toy: Toy) -> None:
    first = local_toy()
    local_toy()
    stored = local_toy.stored(first.stages["sum"].run_id) / "sum.json"
    assert stored.samefile(local_toy.directory / "sum" / "sum.json")


@pytest.mark.parametrize(
    ("override", "states", "why"),
    [
        ("make.count=4", {"make": "ran", "double": "ran", "sum": "ran"}, "config: make.count 3 → 4"),
        ("seed=1", {"make": "ran", "double": "ran", "sum": "ran"}, "config: seed 0 → 1"),
        ("double.factor=3", {"make": "cached", "double": "ran", "sum": "ran"}, "config: double.factor 2.0 → 3.0"),
        ("make.label=other", ALL_CACHED, None),
        ("double.fail=never", {"make": "cached", "double": "ran", "sum": "cached"}, "never cached with this config"),
        ("run.force=[double]", {"make": "cached", "double": "ran", "sum": "cached"}, "forced"),
    ],
)
def test_what_changes_a_result_runs_again_and_says_why(
    toy: Toy, override: str, states: dict[str, str], why: str | None
) -> None:
    toy()
    summary = toy(override)
    assert toy.states(summary) == states
    reasons = [stage.why for stage in summary.stages.values() if stage.state == "ran"]
    assert reasons[:1] == ([why] if why else [])
    if len(reasons) > 1:
        assert reasons[1].startswith("input changed: ")


def test_an_external_file_counts_by_content_not_by_path(toy: Toy, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    (tmp_path / "b").write_text("x")
    toy(f"make.path={tmp_path / 'a'}")
    assert toy(f"make.path={tmp_path / 'b'}").stages["make"].state == "cached"
    (tmp_path / "b").write_text("y")
    changed = toy(f"make.path={tmp_path / 'b'}")
    assert (changed.stages["make"].state, changed.stages["make"].why) == ("ran", "input changed: make.path")
    with pytest.raises(BadInput, match=r"make\.path=.*gone does not exist"):
        toy(f"make.path={tmp_path / 'gone'}")


def test_the_environment_is_in_the_key(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    toy()
    monkeypatch.setenv("TOY_DEVICE", "H100")
    summary = toy()
    assert summary.stages["double"].why == "environment: device cpu → H100"


@pytest.mark.parametrize("file", ["sum.json", "manifest.json"])
@pytest.mark.parametrize("harm", ["gone", "changed"])
def test_a_checkpoint_whose_artifact_was_harmed_is_not_used(toy: Toy, file: str, harm: str) -> None:
    first = toy()
    run_id = str(first.stages["sum"].run_id)
    stored = toy.stored(run_id) / file
    if harm == "gone":
        stored.unlink()
    else:
        stored.write_text(stored.read_text().replace("6", "7"))
    summary = toy()
    assert toy.states(summary) == {"make": "cached", "double": "cached", "sum": "ran"}
    assert summary.stages["sum"].why.startswith(f"artifact {file} of run {run_id[:8]} ")
    assert toy.states(toy()) == ALL_CACHED


@pytest.mark.parametrize(
    ("overrides", "states"),
    [
        (["run.last=make"], {"make": "ran", "double": "skipped", "sum": "skipped"}),
        (["run.only=make"], {"make": "ran", "double": "skipped", "sum": "skipped"}),
    ],
)
def test_a_part_of_the_pipeline(toy: Toy, overrides: list[str], states: dict[str, str]) -> None:
    assert toy.states(toy(*overrides)) == states


def test_first_takes_what_comes_before_from_checkpoints(toy: Toy) -> None:
    with pytest.raises(MoesaicError, match="leaves out make, whose output is needed"):
        toy("run.first=double")
    toy("run.last=double")
    assert toy.states(toy("run.first=sum")) == {"make": "cached", "double": "cached", "sum": "ran"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["run.first=nothing"], "run.first=nothing is no stage; the stages are make, double, sum."),
        (["run.force=[x]"], "run.force=x is no stage"),
        (["run.first=sum", "run.last=make"], "run.first=sum comes after run.last=make."),
        (["run.only=sum", "run.last=make"], "run.only cannot be combined"),
        (["make.count=0"], "make.count=0 is not possible"),
        (["make.count=many"], "make.count=many is wrong: a whole number is expected."),
        (["make.kount=1"], "make.kount is not a known key; allowed are count, path, label."),
        (["tracking.heartbeat_seconds=0"], "tracking.heartbeat_seconds=0.0 must be above 0."),
        (["nonsense=1"], "nonsense is not a known key"),
        (["run.dry=true"], "run.dry is not a known key; allowed are first, last, only, force, dry_run."),
        (
            ["pipeline.stages.double.inputs.numbers=make/x"],
            "is no output of an earlier stage; there are make/numbers.json",
        ),
        (["pipeline.stages.sum.target=no.such.thing"], "pipeline.stages.sum.target=no.such.thing cannot be imported"),
    ],
)
def test_bad_config_gets_one_sentence_with_the_full_key(local_toy: Toy, overrides: list[str], message: str) -> None:
    with pytest.raises(BadInput) as caught:
        local_toy(*overrides)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_dry_run_runs_nothing_and_says_what_would(toy: Toy) -> None:
    summary = toy("run.dry_run=true")
    assert summary.status == "dry_run"
    assert summary.run_id is None
    assert toy.lines == [
        "make     runs    (first run)",
        "double   runs    (waits for make)",
        "sum      runs    (waits for double)",
    ]
    assert not (toy.directory / "make").exists()
    toy("run.last=make")
    assert toy.states(toy("run.dry_run=true")) == {"make": "cached", "double": "skipped", "sum": "skipped"}
    assert toy.store.search("attributes.status = 'RUNNING'") == []


@pytest.mark.parametrize(
    ("fail", "error", "cause", "status"),
    [
        ("error", MoesaicError, "The double stage was told to fail.", "FAILED"),
        ("crash", ZeroDivisionError, "ZeroDivisionError: a bug", "FAILED"),
        ("corrupt", Corruption, "One number is wrong.", "FAILED"),
        ("forget", MoesaicError, "The stage double did not write doubled.json.", "FAILED"),
    ],
)
def test_a_failure_is_recorded_with_its_cause(
    toy: Toy, fail: str, error: type[Exception], cause: str, status: str
) -> None:
    with pytest.raises(error):
        toy(f"double.fail={fail}")
    summary = read_summary(toy.directory / "summary.json")
    assert (summary.status, summary.cause) == ("failed", cause)
    assert toy.states(summary) == {"make": "ran", "double": "failed", "sum": "skipped"}
    assert summary.stages["sum"].why == "not reached: double failed"
    assert summary.run_id
    run = toy.store.run(summary.run_id)
    assert run.info.status == status
    assert cause in run.data.tags["mlflow.note.content"]
    stage = toy.store.run(str(summary.stages["double"].run_id))
    assert stage.info.status == status
    assert cause in stage.data.tags["mlflow.note.content"]
    again = toy()
    assert toy.states(again) == {"make": "cached", "double": "ran", "sum": "ran"}


def test_a_corrupt_result_keeps_its_files_for_the_record(toy: Toy) -> None:
    with pytest.raises(Corruption):
        toy("double.fail=corrupt")
    summary = read_summary(toy.directory / "summary.json")
    assert (toy.directory / "double" / "doubled.json").exists()
    stage = toy.store.run(str(summary.stages["double"].run_id))
    assert stage.data.metrics == {"total": 6.0}
    names = {item.path for item in toy.store.client.list_artifacts(stage.info.run_id)}
    assert {"doubled.json", "manifest.json"} <= names


def test_large_artifacts_need_the_disk_once(local_toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.writes.LINKED_BYTES", 1000)
    folder = tmp_path / "stage"
    (folder / "deep").mkdir(parents=True)
    (folder / "small").write_bytes(bytes(999))
    (folder / "deep" / "large").write_bytes(bytes(1000))
    run = local_toy.store.start("kept", {})
    local_toy.store.artifacts(run, folder)
    kept = local_folder(local_toy.store.run(run))
    assert kept is not None
    assert {file: (kept / file).samefile(folder / file) for file in ("small", "deep/large")} == {
        "small": False,
        "deep/large": True,
    }
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("another file system")))
    run = local_toy.store.start("kept too", {})
    local_toy.store.artifacts(run, folder)
    kept = local_folder(local_toy.store.run(run))
    assert kept is not None
    assert (kept / "deep" / "large").read_bytes() == bytes(1000)
    assert not (kept / "deep" / "large").samefile(folder / "deep" / "large")


def test_a_sixth_stage_or_one_less_is_config_alone(toy: Toy) -> None:
    more = (
        "pipeline.stages.again={target: tests.pipeline.toy.stages.add_up, "
        "inputs: {doubled: double/doubled.json}, outputs: [sum.json]}"
    )
    assert toy.states(toy(more)) == {**ALL_RAN, "again": "ran"}
    assert json.loads((toy.directory / "again" / "sum.json").read_text()) == 6.0


def test_the_store_tells_the_story(toy: Toy) -> None:
    summary = toy("make.count=2")
    store = toy.store
    run = store.run(str(summary.run_id))
    assert run.info.status == "FINISHED"
    assert run.data.params["make.count"] == "2"
    assert run.data.metrics["double.total"] == 2.0
    assert run.data.tags["moesaic.outcome"] == "done"
    assert "| sum&emsp; | ran&emsp; | first run&emsp; |" in run.data.tags["mlflow.note.content"]
    children = {r.info.run_name: r for r in store.search(f"tags.`mlflow.parentRunId` = '{summary.run_id}'")}
    assert set(children) == {"make", "double", "sum"}
    make = children["make"]
    assert make.data.tags["mlflow.note.content"] == "**made**"
    assert make.data.tags["moesaic.odd"] == "1"
    assert make.inputs.dataset_inputs[0].dataset.name == "numbers"
    artifacts = {item.path for item in store.client.list_artifacts(children["sum"].info.run_id)}
    assert artifacts == {"sum.json", "figures", "manifest.json", "config.yaml", "record.json"}
    figures = {item.path for item in store.client.list_artifacts(children["sum"].info.run_id, "figures")}
    assert figures == {"figures/line.png"}
    top = {item.path for item in store.client.list_artifacts(run.info.run_id)}
    assert {"config.yaml", "overrides.yaml", "machine.json", "summary.json"} <= top
    manifest = json.loads((toy.directory / "sum" / "manifest.json").read_text())
    wanted = {"stage", "key", "code_digest", "config", "inputs", "outputs", "environment", "git", "started", "seconds"}
    assert set(manifest) == wanted
    assert (
        manifest["inputs"]["doubled"]
        == json.loads((toy.directory / "double" / "manifest.json").read_text())["outputs"]["doubled.json"]
    )


def test_the_same_folder_can_be_used_again(toy: Toy, tmp_path: Path) -> None:
    toy(directory=tmp_path / "same")
    (tmp_path / "same" / ".double.partial").mkdir()
    assert toy.states(toy(directory=tmp_path / "same")) == ALL_CACHED
    assert toy.states(toy("make.count=5", directory=tmp_path / "same")) == ALL_RAN
    assert not list((tmp_path / "same").glob(".*.partial"))


def test_a_folder_shows_one_run_alone(toy: Toy, tmp_path: Path) -> None:
    toy(directory=tmp_path / "same")
    toy("make.count=9", "run.last=make", directory=tmp_path / "same")
    assert (tmp_path / "same" / "make").is_dir()
    assert not (tmp_path / "same" / "sum").exists()  # it would show what another config made


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_what_others_made_is_never_replaced(local_toy: Toy, tmp_path: Path, kind: str) -> None:
    mine = tmp_path / "project" / "double"
    mine.parent.mkdir()
    if kind == "folder":
        mine.mkdir()
        (mine / "thesis.txt").write_text("precious")
    elif kind == "file":
        mine.write_text("precious")
    else:
        (tmp_path / "elsewhere").mkdir()
        mine.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BadInput, match="double is there already and was not made by moesaic"):
        local_toy(directory=mine.parent)
    local_toy("run.last=make", directory=mine.parent)
    assert mine.exists()
    if kind != "link":
        assert (mine if kind == "file" else mine / "thesis.txt").read_text() == "precious"


def test_an_input_may_lie_in_the_folder_of_the_run(toy: Toy, tmp_path: Path) -> None:
    toy(directory=tmp_path / "same")
    summary = toy(f"make.path={tmp_path / 'same' / 'make' / 'numbers.json'}", directory=tmp_path / "same")
    assert summary.stages["make"].state == "ran"


def test_a_refused_config_does_not_hide_a_finished_run(toy: Toy, tmp_path: Path) -> None:
    first = toy(directory=tmp_path / "same")
    with pytest.raises(BadInput):
        toy("make.count=0", directory=tmp_path / "same")
    assert read_summary(tmp_path / "same" / "summary.json").run_id == first.run_id


def test_a_cached_stage_shows_all_that_the_first_run_did(local_toy: Toy) -> None:
    first = local_toy()
    made = {path.relative_to(local_toy.directory) for path in (local_toy.directory / "sum").rglob("*")}
    local_toy()
    assert {path.relative_to(local_toy.directory) for path in (local_toy.directory / "sum").rglob("*")} == made
    assert {"manifest.json", "config.yaml", "figures", "line.png"} <= {path.name for path in made}
    stored = local_toy.stored(first.stages["sum"].run_id)
    assert oct((stored / "sum.json").stat().st_mode)[-3:] == "444"


def test_two_runs_cannot_share_a_folder(local_toy: Toy, tmp_path: Path) -> None:
    with FileLock(tmp_path / ".lock"), pytest.raises(BadInput, match="Another run is writing into"):
        local_toy(directory=tmp_path)


def test_why_compares_with_the_earlier_run_that_is_nearest(toy: Toy) -> None:
    toy()
    toy("make.count=30", "seed=7")
    assert toy("make.count=4").stages["make"].why == "config: make.count 3 → 4"


def test_a_stage_refused_before_it_runs_is_the_one_that_failed(toy: Toy, tmp_path: Path) -> None:
    with pytest.raises(BadInput):
        toy(f"make.path={tmp_path / 'gone'}")
    summary = read_summary(toy.directory / "summary.json")
    assert toy.states(summary) == {"make": "failed", "double": "skipped", "sum": "skipped"}
    assert "gone does not exist" in toy.store.run(str(summary.run_id)).data.tags["mlflow.note.content"]
