"""`moesaic audit`: one byte of any artifact, or one row of the database, and it says so; a run as it was is clean."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from pipeline.audit import audit
from pipeline.cli import main
from pipeline.evidence import gather
from pipeline.seal import SEAL_TAG, read_record
from pipeline.store import SQLITE, TAG, Store
from pipeline.writes import local_folder
from stages import paths
from tests.pipeline.conftest import Toy
from tests.pipeline.test_cli import _quiet_logging  # noqa: F401

TINY = ("model=tiny", "collect=synthetic", "topology=1x2", "place.redundant_experts=2")


class Kept:
    """A verified run in a store of its own, whose files and rows the tests change and put back."""

    def __init__(self, folder: Path, run_id: str) -> None:
        self.database = folder / "outputs" / "mlflow.db"
        self.uri = f"{SQLITE}{self.database}"
        self.store = Store(self.uri, "moesaic", create=False)
        self.run_id = run_id
        tags = self.store.run(run_id).data.tags
        self.stages = {
            name.removeprefix(f"{TAG}stage."): text.split()[1]
            for name, text in tags.items()
            if name.startswith(f"{TAG}stage.")
        }

    def folder(self, run_id: str) -> Path:
        found = local_folder(self.store.run(run_id))
        assert found is not None
        return found

    def artifacts(self) -> list[Path]:
        runs = (self.run_id, *self.stages.values())
        return sorted(file for run_id in runs for file in self.folder(run_id).rglob("*") if file.is_file())

    def findings(self) -> list[str]:
        return audit(self.store, self.run_id).findings

    def command(self, *arguments: str) -> int:
        return main(["audit", self.run_id[:12], *arguments, "--tracking-uri", self.uri])

    def execute(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self.database)) as connection, connection:
            return connection.execute(statement, values).fetchall()


@contextmanager
def changed(file: Path, content: bytes | None) -> Iterator[None]:
    """`file` with another content, or gone, for the block."""
    before, mode = file.read_bytes(), file.stat().st_mode
    file.unlink()  # the run folder may have the same file
    if content is not None:
        file.write_bytes(content)
    try:
        yield
    finally:
        file.unlink(missing_ok=True)
        file.write_bytes(before)
        file.chmod(mode)


def flipped(content: bytes) -> bytes:
    """One bit of the byte in the middle is another."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.fixture(scope="module")
def kept(migrated: Path, tmp_path_factory: pytest.TempPathFactory) -> Kept:
    folder = tmp_path_factory.mktemp("audited")
    (folder / "outputs").mkdir()
    shutil.copy(migrated, folder / "outputs" / "mlflow.db")
    here = Path.cwd()
    os.chdir(folder)
    try:
        assert main(["run", *TINY, f"hydra.run.dir={folder / 'one'}"]) == 0
    finally:
        os.chdir(here)
    return Kept(folder, json.loads((folder / "one" / "summary.json").read_text())["run_id"])


def test_a_run_as_it_was_is_clean(kept: Kept, capsys: pytest.CaptureFixture[str]) -> None:
    assert kept.command() == 0
    out = capsys.readouterr().out
    for words in (
        "rows replayed on the old map",
        "checksums compared once more",
        "made anew by the generator",
        "Clean:",
    ):
        assert words in out, out
    assert kept.command("--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["clean"]
    assert [part["name"] for part in report["parts"]] == ["run", "collect", "place", "plan", "update", "verify"]
    assert kept.command("--seal", report["seal"][:16]) == 0
    assert kept.command("--seal", "0" * 16) == 3
    assert f"its seal is {report['seal']}, and not the {'0' * 16} that you gave" in capsys.readouterr().err


def test_one_byte_of_any_artifact_is_noticed(kept: Kept) -> None:
    files = kept.artifacts()
    assert {file.name for file in files} >= {
        "config.yaml", "overrides.yaml", "machine.json", "summary.json", "load.safetensors", "load.csv", "manifest.json",
        "placement.json", "placement.safetensors", "moves.csv", "transfers.parquet", "traffic.json", "execution.json",
        "checksums.parquet", "trace.json", "functional.json", "verdict.json", "mismatches.csv", "gpu_load.png", paths.RECORD,
    }  # fmt: skip
    for file in files:
        with changed(file, flipped(file.read_bytes())):
            assert any(file.name in finding for finding in kept.findings()), file
    for file in (kept.folder(kept.stages["plan"]) / "transfers.csv", kept.folder(kept.run_id) / paths.RECORD):
        with changed(file, None):
            assert any(file.name in finding for finding in kept.findings()), file
    added = kept.folder(kept.stages["place"]) / "figures" / "more.png"
    added.write_bytes(b"?")
    assert [finding.split(": ")[1] for finding in kept.findings()] == ["the file figures/more.png was added."]
    added.unlink()
    assert kept.findings() == []


ROWS = {
    "a tag": ("update tags set value = 'failed' where key = 'moesaic.outcome' and run_uuid = ?", "tag moesaic.outcome"),
    "the note": ("update tags set value = '**verified**' where key = 'mlflow.note.content' and run_uuid = ?", "mlflow.note"),
    "a param": ("update params set value = '7' where key = 'place.redundant_experts' and run_uuid = ?", "is '7', and was '2'"),
    "a last metric": ("update latest_metrics set value = 1.0 where key = 'place.balancedness' and run_uuid = ?", "is 1, and"),
    "a point": ("update metrics set value = 1.0 where key = 'place.balancedness' and run_uuid = ?", "has other points"),
    "the name": ("update runs set name = 'another' where run_uuid = ?", "its name is 'another'"),
    "the status": ("update runs set status = 'FAILED' where run_uuid = ?", "its status is FAILED"),
    "a tag less": ("delete from tags where key = 'moesaic.machine' and run_uuid = ?", "moesaic.machine is gone"),
    "a param more": ("insert into params (key, value, run_uuid) values ('place.x', '1', ?)", "place.x was added"),
    "the start": ("update runs set start_time = start_time - 86400000 where run_uuid = ?", "its start is 20"),
    "the end": ("update runs set end_time = end_time + 1 where run_uuid = ?", "its end is 20"),
    "the kind": ("delete from tags where key = 'moesaic.kind' and run_uuid = ?", "the tag moesaic.kind is gone"),
    "a parent": ("insert into tags (key, value, run_uuid) values ('mlflow.parentRunId', 'f', ?)", "mlflow.parentRunId was added"),
    "the code": ("insert into tags (key, value, run_uuid) values ('mlflow.source.branch', 'x', ?)", "source.branch was added"),
    "the inputs": ("delete from inputs where destination_id = ?", "the dataset synthetic lognormal is not"),
}  # fmt: skip


@pytest.mark.parametrize("row", ROWS)
def test_one_row_of_the_run_exits_3_with_a_sentence(kept: Kept, row: str, capsys: pytest.CaptureFixture[str]) -> None:
    statement, words = ROWS[row]
    before = kept.database.read_bytes()
    kept.execute(statement, kept.run_id)
    try:
        assert kept.command() == 3
    finally:
        kept.database.write_bytes(before)
    out, err = capsys.readouterr()
    assert words in out, out
    assert "WRONG: " in out
    assert "finding" in err.splitlines()[-1]
    assert err.endswith(".\n")
    assert kept.findings() == []


@pytest.fixture
def rows(kept: Kept) -> Iterator[None]:
    """Rows that are changed are put back."""
    before = kept.database.read_bytes()
    yield
    kept.database.write_bytes(before)
    assert kept.findings() == []


def test_a_stage_run_that_nobody_sees_any_more_is_found(kept: Kept, rows: None) -> None:
    kept.store.client.delete_run(kept.stages["verify"])
    assert any("verify" in each and "was deleted in MLflow" in each for each in kept.findings())


def test_a_run_that_was_put_below_it_is_found(kept: Kept, rows: None) -> None:
    tags = kept.store.run(kept.stages["verify"]).data.tags
    other = kept.store.client.create_run(kept.store.experiment_id, tags=tags, run_name="verify")
    assert any(f"the run {other.info.run_id[:8]} (verify) is below it" in each for each in kept.findings())


def test_a_data_set_that_is_said_to_come_from_elsewhere_is_remarked(kept: Kept, rows: None) -> None:
    kept.execute('update datasets set dataset_source = replace(dataset_source, \'"uri": "\', \'"uri": "not \')')
    kept.execute("update datasets set dataset_profile = replace(dataset_profile, '\"windows\": ', '\"windows\": 9')")
    report = audit(kept.store, kept.run_id)
    assert report.findings == []  # two runs may have read the same content from two places
    assert any(
        "came from not " in remark and "this one read" in remark for part in report.parts for remark in part.remarks
    )
    assert any('is {"windows": 9' in remark for part in report.parts for remark in part.remarks)


def test_a_store_that_goes_away_tells_nothing_of_a_run(
    kept: Kept, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from mlflow.exceptions import MlflowException

    real = Store.run

    def away(store: Store, run_id: str) -> Any:
        if run_id == kept.stages["plan"]:
            raise MlflowException("API request failed: connection refused")
        return real(store, run_id)

    monkeypatch.setattr(Store, "run", away)
    assert kept.command() == 1
    assert "The tracking store does not answer: MlflowException: API request" in capsys.readouterr().err


def test_a_run_that_was_deleted_is_said_to_be(kept: Kept, rows: None, capsys: pytest.CaptureFixture[str]) -> None:
    kept.store.client.delete_run(kept.run_id)
    assert kept.command() == 2
    assert f"Run {kept.run_id[:8]} was deleted in MLflow" in capsys.readouterr().err


COLUMNS = {
    "tags": ("key", "value"),
    "params": ("key", "value"),
    "latest_metrics": ("key", "value"),
    "metrics": ("key", "value"),
}


def test_any_row_of_a_stage_run_is_noticed(kept: Kept, tmp_path: Path) -> None:
    run_id = kept.stages["plan"]
    run = kept.store.run
    assert gather(kept.store, run(run_id), tmp_path).findings == []
    tried = 0
    for table, (key, value) in COLUMNS.items():
        for row, name, held in kept.execute(f"select rowid, {key}, {value} from {table} where run_uuid = ?", run_id):
            other = held + 1 if isinstance(held, float | int) else f"{held} "
            kept.execute(f"update {table} set {value} = ? where rowid = ?", other, row)
            assert any(name in finding for finding in gather(kept.store, run(run_id), tmp_path).findings), (table, name)
            kept.execute(f"update {table} set {value} = ? where rowid = ?", held, row)
            tried += 1
    assert tried > 50
    assert gather(kept.store, run(run_id), tmp_path).findings == []


def sealed_anew(kept: Kept, stage: str, change: Callable[[Path], None]) -> Iterator[list[str]]:
    """The findings after a forger changed files of a stage and then wrote everything that speaks of them anew: manifest,
    record and seal of the stage, and those of the run."""
    backup = {file: (file.read_bytes(), file.stat().st_mode) for file in kept.artifacts()}
    database = kept.database.read_bytes()
    folder = kept.folder(kept.stages[stage])
    for file in backup:
        file.chmod(0o644)
    try:
        change(folder)
        manifest = json.loads((folder / paths.MANIFEST).read_text())
        manifest["outputs"] = {name: paths.sha256(folder / name) for name in manifest["outputs"]}
        paths.write_json(folder / paths.MANIFEST, manifest)
        seal = _seal(kept, kept.stages[stage])
        kept.execute("update tags set value = ? where key = ?", seal, f"{SEAL_TAG}.{stage}")
        _seal(kept, kept.run_id, {f"{SEAL_TAG}.{stage}": seal})
        yield kept.findings()
    finally:
        kept.database.write_bytes(database)
        for file, (content, mode) in backup.items():
            file.write_bytes(content)
            file.chmod(mode)


def _seal(kept: Kept, run_id: str, tags: dict[str, str] | None = None) -> str:
    """The seal of a record that says what is there now."""
    folder = kept.folder(run_id)
    record, run = read_record(folder / paths.RECORD), kept.store.run(run_id)
    record.files = {name: paths.sha256(folder / name) for name in record.files}
    record.tags |= tags or {}
    record.metrics = {name: [value] for name, value in run.data.metrics.items()}
    record.write(folder / paths.RECORD)
    seal = paths.sha256(folder / paths.RECORD)
    kept.execute("update tags set value = ? where key = ? and run_uuid = ?", seal, SEAL_TAG, run_id)
    return seal


forged = contextmanager(sealed_anew)


def test_a_forged_verdict_is_found_by_computing_it_again(kept: Kept) -> None:
    def drop(folder: Path) -> None:
        verdict = json.loads((folder / paths.VERDICT).read_text())
        paths.write_json(folder / paths.VERDICT, {**verdict, "compared": verdict["compared"] + 7})

    with forged(kept, "verify", drop) as findings:
        assert any("speaks of 407 checksums, and 400 can be compared" in finding for finding in findings), findings
        assert not any("SHA-256" in finding or "seal" in finding for finding in findings)
    assert kept.findings() == []


def test_forged_checksums_are_found_by_making_the_weights_anew(kept: Kept) -> None:
    from stages.checksum_table import read_checksums, write_checksums

    def alter(folder: Path) -> None:
        table = read_checksums(folder / paths.CHECKSUMS)
        table.after[2, 5, 1] ^= 1
        write_checksums(folder, table)

    with forged(kept, "update", alter) as findings:
        assert any("layer 2 slot 5 (rank 1)" in finding for finding in findings), findings
        assert any("checksums that its verify worked on" in finding for finding in findings), findings


def test_a_forged_plan_is_found_by_carrying_it_out(kept: Kept) -> None:
    from stages.transfers import read_transfers, write_transfers

    def alter(folder: Path) -> None:
        plan = read_transfers(folder / paths.TRANSFERS)
        plan.logical_expert[0] = (plan.logical_expert[0] + 1) % 8
        write_transfers(folder, plan)

    with forged(kept, "plan", alter) as findings:
        assert any("plan" in finding and ("carried out" in finding or "sends from" in finding) for finding in findings)


def test_a_forged_number_is_found_by_the_files(kept: Kept) -> None:
    def alter(folder: Path) -> None:
        kept.execute("update latest_metrics set value = 0.9999 where key like '%balancedness'")
        kept.execute("update metrics set value = 0.9999 where key like '%balancedness'")

    with forged(kept, "place", alter) as findings:
        assert any("the metric balancedness is 0.9999, and the files give 0." in finding for finding in findings), (
            findings
        )


def test_what_cannot_be_audited_is_said(toy: Toy, capsys: pytest.CaptureFixture[str]) -> None:
    def audited(run_id: str) -> int:
        return main(["audit", run_id, "--tracking-uri", toy.uri, "--experiment", toy.experiment])

    run_id = str(toy().run_id)
    assert audited(run_id) == 0
    assert "nothing of this version of moesaic computes its results again" in capsys.readouterr().out
    (toy.stored(run_id) / paths.RECORD).unlink()
    assert audited(run_id) == 3
    assert f"it has no {paths.RECORD}" in capsys.readouterr().err
    started = toy.store.start("running", {"kind": "run"})
    assert audited(started) == 2
    assert "still runs" in capsys.readouterr().err
    toy.store.finish(started, "KILLED")
    assert audited(started) == 1
    assert "nothing can be audited" in capsys.readouterr().err


def test_a_cached_stage_is_audited_in_the_run_that_made_it(toy: Toy) -> None:
    first, second = toy(), toy("run.force=[sum]")
    assert [state.state for state in second.stages.values()] == ["cached", "cached", "ran"]
    assert audit(toy.store, str(second.run_id)).findings == []
    made = str(first.stages["double"].run_id)
    file = toy.stored(made) / "doubled.json"
    with changed(file, flipped(file.read_bytes())):
        found = audit(toy.store, str(second.run_id)).findings
    assert found
    assert all(finding.startswith(f"double ({made[:8]})") for finding in found)
