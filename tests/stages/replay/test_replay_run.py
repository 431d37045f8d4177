"""`moesaic run experiment=replay`: a pipeline of its own, declared by config alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.cli import main
from pipeline.store import SQLITE, Store
from pipeline.summary import read_summary
from tests.pipeline.test_cli import _quiet_logging  # noqa: F401

SMALL = ("collect.label=mmlu_dev", "collect.window=24", "replay.rules=[never,every]", "replay.every=2")


def test_the_experiment_runs_is_cached_and_says_why_it_runs_again(
    store_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here = store_file.parent.parent

    def run(name: str, *more: str) -> str:
        assert main(["run", "experiment=replay", *SMALL, *more, f"hydra.run.dir={here / name}"]) == 0
        return capsys.readouterr().out

    run("first")
    summary = read_summary(here / "first" / "summary.json")
    assert summary.status == "done"
    assert list(summary.stages) == ["collect", "replay"]
    metrics = summary.stages["replay"].metrics
    assert metrics["balancedness_every"] > metrics["balancedness_never"]
    assert metrics["tokens_per_second"] == 20000
    found = Store(f"{SQLITE}{store_file}", "moesaic").run(str(summary.stages["replay"].run_id))
    assert "at 20000 tokens a second" in found.data.tags["mlflow.note.content"]
    assert "replay   cached" in run("second")
    again = run("third", "collect.tokens_per_second=10000")
    assert "collect  cached" in again
    assert "collect.tokens_per_second 20000.0 → 10000.0" in again
