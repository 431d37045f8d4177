"""A sweep under one parent run, closed with a comparison of its points."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from mlflow.entities import Run
from omegaconf import DictConfig

from pipeline import sweep
from pipeline.cli import main
from pipeline.comparison import GOALS, STAR, Comparison, Point, pareto_front
from pipeline.store import NOTE, SQLITE, Store
from tests.pipeline.test_cli import _quiet_logging  # noqa: F401

ROOT = Path(__file__).parents[2]
SWEEP = [
    "run", "-m", "model=tiny", "collect=synthetic", "topology=1x2,2x2", "place.redundant_experts=0,4", "run.last=plan",
    "hydra.sweep.dir=swept",
]  # fmt: skip


def runs_of(store_file: Path, kind: str) -> list[Run]:
    store = Store(f"{SQLITE}{store_file}", "moesaic")
    return store.search(f"tags.`moesaic.kind` = '{kind}'")[::-1]


def table_of(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "comparison.csv").open(encoding="utf-8")))


def test_points_lie_under_a_parent_that_compares_them(store_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(SWEEP) == 0, capsys.readouterr().err
    (parent,), points = runs_of(store_file, "sweep"), runs_of(store_file, "run")
    assert parent.info.status == "FINISHED"
    assert len(points) == 4
    assert {point.data.tags["mlflow.parentRunId"] for point in points} == {parent.info.run_id}
    assert parent.data.metrics["points"] == 4
    assert parent.data.metrics["failed_points"] == 0

    rows = table_of(Path("swept"))
    assert [row["run_id"] for row in rows] == [point.info.run_id for point in points]
    assert [row["point"] for row in rows] == [
        f"topology={topology} place.redundant_experts={extra}" for topology in ("1x2", "2x2") for extra in (0, 4)
    ]
    for row, point in zip(rows, points, strict=True):
        for goal in GOALS:
            assert float(row[goal.metric]) == point.data.metrics[goal.metric]
    assert sum(int(row["pareto"]) for row in rows) == parent.data.metrics["pareto_points"] > 0
    assert (Path("swept") / "comparison.png").read_bytes().startswith(b"\x89PNG")
    note = parent.data.tags[NOTE]
    assert all(f"runs/{point.info.run_id}" in note for point in points)
    store = Store(f"{SQLITE}{store_file}", "moesaic")
    assert {"comparison.csv", "comparison.png"} <= set(store.files(parent))

    out = capsys.readouterr().out
    assert "points are beaten by no other" in out
    assert f"Sweep {parent.info.run_id}; comparison in " in out
    assert out.count("collect  runs") == 1
    assert out.count("collect  cached") == 3


def test_equal_points_run_each_with_a_config_of_its_own(
    store_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Hydra writes into the config of a point: the first of two equal ones takes what was composed to be checked."""
    composed = []
    compose = ConfigLoaderImpl.load_sweep_config

    def counted(self: ConfigLoaderImpl, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        composed.append(tuple(sweep_overrides))
        return compose(self, master_config, sweep_overrides)

    monkeypatch.setattr(ConfigLoaderImpl, "load_sweep_config", counted)
    command = [*SWEEP[:2], "model=tiny", "collect=synthetic", "topology=1x2,2x2,1x2", "run.last=collect", SWEEP[-1]]
    assert main(command) == 0, capsys.readouterr().err
    assert [row["point"] for row in table_of(Path("swept"))] == ["topology=1x2", "topology=2x2", "topology=1x2"]
    assert [run.data.tags["moesaic.point"] for run in runs_of(store_file, "run")] == ["0", "1", "2"]
    assert len(composed) == 4  # three to be checked, and the second of the equal ones to be run


def test_points_that_cannot_be_are_in_the_comparison_with_their_cause(
    store_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*SWEEP[:2], "model=tiny", "collect=synthetic,table", "topology=1x2", "run.last=plan", SWEEP[-1]]
    assert main(command) == 2
    (parent,) = runs_of(store_file, "sweep")
    assert parent.info.status == "FAILED"
    rows = table_of(Path("swept"))
    assert [(row["point"], row["status"]) for row in rows] == [
        ("collect=synthetic", "done"),
        ("collect=table", "failed"),
    ]
    assert "collect.path" in rows[1]["cause"]
    assert rows[1]["plan.predicted_seconds"] == ""
    assert "1 of the sweep's runs failed" in parent.data.tags["moesaic.cause"]
    assert capsys.readouterr().err.splitlines()[-1].startswith("1 of the sweep's runs failed")


def test_stages_that_did_not_run_are_no_columns(store_file: Path) -> None:
    assert main([*SWEEP[:5], "run.last=place", SWEEP[-1]]) == 0
    columns = list(table_of(Path("swept"))[0])
    assert columns[:7] == ["run_id", "number", "point", "topology", "pareto", "place.balancedness", "status"]
    assert not [column for column in columns if column.startswith("plan.")]
    assert not (Path("swept") / "comparison.png").exists()


def test_a_dry_sweep_leaves_no_run(store_file: Path) -> None:
    assert main([*SWEEP, "run.dry_run=true"]) == 0
    assert runs_of(store_file, "sweep") == runs_of(store_file, "run") == []


def test_a_sweep_that_is_ended_is_closed_as_killed(store_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = iter(range(9))

    def interrupted(*args: Any) -> Any:
        if next(calls) == 1:
            raise KeyboardInterrupt
        return run_pipeline(*args)

    from pipeline import app
    from pipeline.runner import run_pipeline

    monkeypatch.setattr(app, "run_pipeline", interrupted)
    assert main(SWEEP) == 1
    (parent,) = runs_of(store_file, "sweep")
    assert parent.info.status == "KILLED"
    assert len(table_of(Path("swept"))) == 1
    assert sweep.close() is None


@pytest.mark.parametrize("end", ["raise KeyboardInterrupt", "os.kill(os.getpid(), 9)"], ids=["Ctrl-C", "kill -9"])
def test_a_sweep_that_was_continued_is_sealed_anew(
    store_file: Path, capsys: pytest.CaptureFixture[str], end: str
) -> None:
    """What the store has of both attempts is what the seal speaks for."""
    words = [*SWEEP[:5], "run.last=collect", SWEEP[-1]]
    code = f"""
import os
from pipeline import app, cli
run, calls = app.run_pipeline, []
def second_ends(request):
    calls.append(request)
    if len(calls) == 2:
        {end}
    return run(request)
app.run_pipeline = second_ends
cli.main({words!r})
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for _ in range(2):  # the second point ends two attempts
        subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=False)
    (parent,) = runs_of(store_file, "sweep")
    assert parent.info.status != "FINISHED"
    assert main(words) == 0
    (parent,) = runs_of(store_file, "sweep")
    assert parent.info.status == "FINISHED"
    assert int(parent.data.tags["moesaic.continued"]) == 2
    assert main(["audit", parent.info.run_id]) == 0, capsys.readouterr().out
    Store(f"{SQLITE}{store_file}", "moesaic").tag(parent.info.run_id, {"continued": "0"})
    assert main(["audit", parent.info.run_id]) == 3
    assert "the tag moesaic.continued is '0'" in capsys.readouterr().out


def test_an_orphaned_sweep_is_reaped_and_is_no_run(store_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store(f"{SQLITE}{store_file}", "moesaic")
    tags = {"kind": "sweep", "host": "elsewhere", "heartbeat": "1", "heartbeat_seconds": "1"}
    run_id = store.start("sweep of old", tags)
    assert main([*SWEEP[:1], "model=tiny", "collect=synthetic", "run.last=collect", "hydra.run.dir=one"]) == 0
    assert store.run(run_id).info.status == "KILLED"
    assert main(["export", run_id, "--to", "sglang", "--out", "map.json"]) == 2
    assert "is a sweep: name one of its runs" in capsys.readouterr().err


def point(index: int, *values: float) -> Point:
    labels = [goal.label for goal in GOALS]
    return Point(f"{index:032x}", f"x={index}", "done", "", dict(zip(labels, values, strict=False)))


def test_the_pareto_front_by_hand() -> None:
    points = [
        point(0, 0.9, 10, 1.0, 5),
        point(1, 0.9, 10, 1.0, 6),  # beaten by 0
        point(2, 0.95, 20, 2.0, 9),  # the best balanced
        point(3, 0.8, 10, 1.0, 4),  # the smallest
        point(4, 0.9, 10, 1.0, 5),  # equal to 0: neither beats the other
        point(5),  # failed
        point(6, 0.99, 1),  # not all values
    ]
    front = pareto_front(points, list(GOALS))
    assert front == {0, 2, 3, 4}
    found = Comparison(points, list(GOALS), front)
    assert [row[0] for row in found.rows()] == [f"0 {STAR}", "1", f"2 {STAR}", f"3 {STAR}", f"4 {STAR}", "5", "6"]
    assert found.metrics() == {"points": 7, "failed_points": 1, "pareto_points": 4}
    assert json.dumps(found.note("1"))
    assert pareto_front([point(0)], []) == set()
