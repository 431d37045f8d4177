"""The whole pipeline with real ranks, from the command: what it leaves, what it refuses, and how it goes on after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet
import pytest

from pipeline.cli import main
from pipeline.store import SQLITE, Store
from pipeline.summary import Summary, read_summary
from tests.pipeline.report.parsed import parse
from tests.pipeline.report.test_page import ALL, section, titles
from tests.pipeline.test_cli import _quiet_logging  # noqa: F401

ROOT = Path(__file__).parents[2]
TINY = ("model=tiny", "collect=synthetic", "topology=1x2", "place.redundant_experts=2")
STAGES = ("collect", "place", "plan", "update", "verify")
FILES = {
    "collect": {"load.safetensors", "load.csv"},
    "place": {"placement.json", "placement.safetensors", "balance.safetensors"},
    "plan": {"transfers.parquet", "transfers.csv", "traffic.json"},
    "update": {"execution.json", "checksums.parquet", "checksums.csv", "trace.json"},
    "verify": {"verdict.json"},
}
METRICS = {
    "collect": {"windows", "tokens", "imbalance"},
    "place": {
        "balancedness", "balancedness_worst_layer", "balancedness_before", "balancedness_next_window",
        "optimality_gap", "moved_slots", "duplicate_replicas", "redundant_experts_used", "solve_seconds",
    },
    "plan": {
        "transfers", "moved_bytes", "cross_node_bytes", "same_node_bytes", "relay_bytes", "max_rank_recv_bytes",
        "max_node_send_bytes", "predicted_seconds", "lower_bound_seconds", "plan_seconds",
    },
    "update": {
        "update_seconds", "moved_bytes", "effective_gb_per_s", "link_gb_per_s", "link_efficiency", "staging_bytes",
    },
    "verify": {"checksums_compared", "mismatches", "verify_gb_per_s"},
}  # fmt: skip


@pytest.fixture
def here(store_file: Path) -> Path:
    return store_file.parent.parent


def run(here: Path, name: str, *overrides: str) -> tuple[int, Summary]:
    code = main(["run", *TINY, *overrides, f"hydra.run.dir={here / name}"])
    return code, read_summary(here / name / "summary.json")


def states(summary: Summary) -> list[str]:
    return [stage.state for stage in summary.stages.values()]


def test_the_main_job_is_verified_and_then_cached(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, first = run(here, "one")
    assert (code, first.status, states(first)) == (0, "verified", ["ran"] * 5)
    for stage, files in FILES.items():
        assert files <= {path.name for path in (here / "one" / stage).iterdir()}, stage
        assert METRICS[stage] <= set(first.stages[stage].metrics), stage
    plan, update = first.stages["plan"].metrics, first.stages["update"].metrics
    assert update["moved_bytes"] == plan["moved_bytes"] > 0
    assert first.stages["verify"].metrics["mismatches"] == 0
    table = pyarrow.parquet.read_table(here / "one" / "plan" / "transfers.parquet")
    assert table.column_names == [
        "layer", "logical_expert", "kind", "src_rank", "src_slot", "dst_rank", "dst_slot", "round", "bytes",
    ]  # fmt: skip
    events = json.loads((here / "one" / "update" / "trace.json").read_text())
    assert {event["pid"] for event in events["traceEvents"]} == {0, 1}
    out = capsys.readouterr().out
    assert "verified: every byte is where it belongs" in out
    assert f"Report: {here / 'one' / 'report.html'}" in out
    report = parse((here / "one" / "report.html").read_text(encoding="utf-8").removeprefix("<!DOCTYPE html>\n"))
    assert set(ALL) <= set(titles(report))
    assert report.one("pre", class_="command").text == f"moesaic run {' '.join(TINY)}"
    code, second = run(here, "two")
    assert (code, second.status, states(second)) == (0, "verified", ["cached"] * 5)
    kept = here / "outputs" / "mlartifacts" / str(first.stages["verify"].run_id) / "artifacts" / "verdict.json"
    assert kept.samefile(here / "two" / "verify" / "verdict.json")
    code, third = run(here, "three", "run.force=[update]")
    assert (code, states(third)) == (0, ["cached", "cached", "cached", "ran", "ran"])


def test_a_sixth_stage_and_one_less(here: Path) -> None:
    sixth = (
        "+pipeline.stages.count={target: tests.pipeline.extra_stages.count, "
        "inputs: {verdict: verify/verdict.json}, outputs: [count.json]}"
    )
    code, summary = run(here, "six", sixth)
    assert (code, summary.status, states(summary)) == (0, "verified", ["ran"] * 6)
    assert json.loads((here / "six" / "count" / "count.json").read_text()) > 0
    code, summary = run(here, "four", "~pipeline.stages.verify")
    assert (code, summary.status, states(summary)) == (0, "done", ["cached"] * 4)


def test_a_wrong_byte_exits_3_with_a_table(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = here / "extra"
    (folder / "pipeline").mkdir(parents=True)
    (folder / "tamper").mkdir()
    (folder / "tamper" / "default.yaml").write_text("layer: 2\nslot: 5\ntensor: 1\n")
    text = (ROOT / "conf" / "pipeline" / "default.yaml").read_text()
    stage = """  tamper:
    target: tests.pipeline.extra_stages.tamper
    config: [tamper]
    inputs: {checksums: update/checksums.parquet}
    outputs: [checksums.parquet]
"""
    text = text.replace("  verify:\n", stage + "  verify:\n").replace(
        "      checksums: update/checksums.parquet\n", "      checksums: tamper/checksums.parquet\n"
    )
    assert "checksums: tamper/checksums.parquet" in text
    (folder / "pipeline" / "tampered.yaml").write_text(text)
    code, summary = run(here, "bad", f"hydra.searchpath=[file://{folder}]", "pipeline=tampered", "+tamper=default")
    assert (code, summary.status, summary.stages["verify"].state) == (3, "failed", "failed")
    captured = capsys.readouterr()
    last = captured.err.strip().splitlines()[-1]
    for words in ("layer 2", "slot 5", "rank 1"):
        assert words in last, last
    assert "1 wrong checksums" in captured.out
    report = parse((here / "bad" / "report.html").read_text(encoding="utf-8").removeprefix("<!DOCTYPE html>\n"))
    assert "layer 2 slot 5 (rank 1)" in report.all(role="status")[0].text
    assert section(report, "Checksum verdict").one(class_="banner").text.startswith("✕ Failed: 1 checksum of ")
    verdict = json.loads((here / "bad" / "verify" / "verdict.json").read_text())
    assert [(m["layer"], m["slot"], m["rank"]) for m in verdict["mismatches"]] == [(2, 5, 1)]
    store = Store(f"{SQLITE}{here / 'outputs' / 'mlflow.db'}", "moesaic")
    failed = store.run(str(summary.run_id))
    assert failed.info.status == "FAILED"
    assert "layer 2" in failed.data.tags["mlflow.note.content"]


def processes_with(mark: str) -> list[int]:
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if f"MOESAIC_TEST_MARK={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
            except OSError:
                continue
    return found


def test_a_run_killed_in_any_stage_goes_on_from_the_last_finished(here: Path) -> None:
    """Killed with -9 in each stage in turn: each call takes what the one before finished, and leaves no process."""
    mark = f"{os.getpid()}-{time.monotonic_ns()}"
    environment = {**os.environ, "MOESAIC_TEST_MARK": mark, "PYTHONPATH": str(ROOT)}
    for number, stage in enumerate(STAGES):
        directory = here / f"kill-{stage}"
        command = [sys.executable, "-m", "pipeline.cli", "run", *TINY, f"hydra.run.dir={directory}"]
        process = subprocess.Popen(command, cwd=here, env=environment, stdout=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 90
        while not (directory / f".{stage}.partial").exists():
            assert process.poll() is None, f"ended before {stage}"
            assert time.monotonic() < deadline
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        out, _ = process.communicate(timeout=30)
        for done in STAGES[:number]:
            assert f"{done:<8} cached " in out or f"{done:<8} runs " in out
        if number:
            before = STAGES[number - 1]
            assert f"{before:<8} runs " in out, out
        for earlier in STAGES[: max(0, number - 1)]:
            assert f"{earlier:<8} cached " in out, out
    code, summary = run(here, "last")
    assert (code, summary.status) == (0, "verified")
    assert states(summary) == ["cached"] * 4 + ["ran"]
    store = Store(f"{SQLITE}{here / 'outputs' / 'mlflow.db'}", "moesaic")
    assert store.search("attributes.status = 'RUNNING'") == []
    deadline = time.monotonic() + 20
    while processes_with(mark) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert processes_with(mark) == []
