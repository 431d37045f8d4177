"""Sweeps whose points run in other processes, by each launcher for real; and sweeps that are interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from mlflow.entities import Run

from pipeline.cli import main
from pipeline.store import Store
from tests.pipeline import slurm
from tests.pipeline.terminal import Terminal
from tests.pipeline.test_cli import _quiet_logging  # noqa: F401

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "pipeline.cli", "run", "-m", "model=tiny", "collect=synthetic", "topology=1x2"]
POINTS = ["place=contiguous,eplb", "place.redundant_experts=0,4"]


def needs(module: str, extra: str) -> None:
    if find_spec("hydra_plugins") is None or find_spec(f"hydra_plugins.{module}") is None:
        pytest.skip(f"needs pip install 'moesaic[{extra}]'")


def command(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    return subprocess.run(
        [*COMMAND, *arguments], env=environment, capture_output=True, text=True, timeout=170, check=False
    )


def runs_of(store_file: Path, kind: str) -> list[Run]:
    return Store(f"sqlite:///{store_file}", "moesaic").search(f"tags.`moesaic.kind` = '{kind}'")[::-1]


def check(store_file: Path, outcomes: list[str]) -> None:
    """The points lie under one parent that compares them, and what they share was made once."""
    (parent,) = runs_of(store_file, "sweep")
    runs = runs_of(store_file, "run")
    assert {run.data.tags["mlflow.parentRunId"] for run in runs} == {parent.info.run_id}
    assert sorted(int(run.data.tags["moesaic.point"]) for run in runs) == list(range(len(outcomes)))
    done = [run for run in runs if run.data.tags["moesaic.outcome"] != "failed"]
    assert {run.info.status for run in done} == {"FINISHED"}
    collected = sorted(run.data.tags["moesaic.stage.collect"].split()[0] for run in done)
    assert collected == ["cached"] * (len(done) - 1) + ["ran"]
    table = pq.read_table(Path("swept/comparison.parquet"))
    assert table["number"].to_pylist() == list(range(len(outcomes)))
    assert table["status"].to_pylist() == outcomes
    assert parent.info.status == ("FAILED" if "failed" in outcomes else "FINISHED")
    assert parent.data.metrics["points"] == len(outcomes)
    assert not Path("swept/.locks").exists()


def test_submitit_on_this_host(store_file: Path) -> None:
    needs("hydra_submitit_launcher", "submitit")
    done = command(POINTS[0], "run.last=collect", "hydra/launcher=submitit_local", "hydra.sweep.dir=swept")
    assert done.returncode == 0, done.stdout + done.stderr
    check(store_file, ["done", "done"])
    assert {"#0 done", "#1 done"} < set(done.stdout.splitlines())


def test_submitit_on_slurm(store_file: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    needs("hydra_submitit_launcher", "submitit")
    if why := slurm.missing():
        pytest.skip(why)
    folder = tmp_path_factory.mktemp("slurm")
    for parent in (folder, *folder.parents[:2]):
        parent.chmod(0o755)
    try:
        with slurm.one_node(folder) as variables:
            launcher = ["hydra/launcher=submitit_slurm", "hydra.launcher.mem_gb=1", "hydra.launcher.timeout_min=5"]
            done = command(POINTS[0], *launcher, "hydra.sweep.dir=swept", **variables)
    except RuntimeError as error:
        pytest.skip(str(error))
    assert done.returncode == 0, done.stdout + done.stderr
    check(store_file, ["verified", "verified"])  # with an update: the job is no rank, it starts its ranks itself
    jobs = {run.data.tags["moesaic.pid"] for run in runs_of(store_file, "run")}
    assert len(jobs) == 2
    assert len(list(Path("swept/.submitit").rglob("*_submitted.pkl"))) == 2


def test_ray_on_two_nodes(store_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("hydra_ray_launcher", "ray")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    from ray.cluster_utils import Cluster

    small = {"num_cpus": 1, "object_store_memory": 80 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={**small, "include_dashboard": False})
    try:
        cluster.add_node(**small)
        launcher = ["hydra/launcher=ray", f"+hydra.launcher.ray.init.address={cluster.address}"]
        done = command(POINTS[0], *launcher, "hydra.sweep.dir=swept")
    finally:
        cluster.shutdown()
    assert done.returncode == 0, done.stdout + done.stderr
    check(store_file, ["verified"] * 2)
    assert len({run.data.tags["moesaic.pid"] for run in runs_of(store_file, "run")}) >= 2


def test_joblib_before_a_terminal_and_with_a_point_that_cannot_be(store_file: Path) -> None:
    needs("hydra_joblib_launcher", "joblib")
    here = store_file.parent.parent
    words = [
        "place=contiguous,eplb",
        "place.redundant_experts=4,-1",
        "hydra/launcher=joblib",
        "hydra.launcher.n_jobs=2",
    ]
    terminal = Terminal([*COMMAND, *words, "hydra.sweep.dir=swept"], here, {"PYTHONPATH": str(ROOT)})
    terminal.until(lambda text: " points done" in text and "#0  ━" in text, 90)
    assert terminal.end() == 2, terminal.text
    assert "━" not in terminal.text
    lines = terminal.text.splitlines()
    assert {"#0 verified", "#2 verified"} < set(lines)
    assert any(line.startswith("#3 failed: place.redundant_experts=-1 ") for line in lines)
    cause = lines.index(
        next(line for line in lines if line.startswith("2 of the sweep's runs failed, the last with: "))
    )
    assert lines[cause - 1].startswith("Sweep ") or lines[cause - 2].startswith("Sweep ")
    check(store_file, ["verified", "failed", "verified", "failed"])


def test_optuna_searches_placements(store_file: Path) -> None:
    needs("hydra_optuna_sweeper", "optuna")
    search = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "hydra.sweeper.sampler.seed=1"]
    goals = ["sweep.objectives=[place.balancedness,plan.moved_bytes]", "hydra.sweeper.direction=[maximize,minimize]"]
    knobs = ["place=eplb", "place.redundant_experts=choice(-1,0,4)", "run.last=plan"]
    done = command(*search, *goals, *knobs, "hydra.sweep.dir=swept")
    assert done.returncode in (0, 2), done.stdout + done.stderr
    points = pq.read_table(Path("swept/comparison.parquet")).to_pylist()
    found = yaml.safe_load(Path("swept/optimization_results.yaml").read_text())
    best = [(solution["params"]["place.redundant_experts"], *solution["values"]) for solution in found["solutions"]]
    good = [point for point in points if point["status"] == "done"]
    assert len(points) == 3
    assert {int(point["place.redundant_experts"]) for point in points} == {-1, 0, 4}  # by its seed
    assert len(good) == 2  # what cannot be is a failed trial, and does not end the search
    rows = [(int(p["place.redundant_experts"]), p["place.balancedness"], p["plan.moved_bytes"]) for p in good]
    assert set(best) <= set(rows)
    assert best


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "number"),
    [("basic", signal.SIGINT), ("joblib", signal.SIGKILL)],
    ids=lambda value: getattr(value, "name", value),
)
def test_an_interrupted_sweep_goes_on_where_it_was(store_file: Path, launcher: str, number: signal.Signals) -> None:
    if launcher == "joblib":
        needs("hydra_joblib_launcher", "joblib")
    arguments = ["seed=1,2,3,4", "run.last=collect", f"hydra/launcher={launcher}"]
    process = subprocess.Popen(
        [*COMMAND, *arguments], env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    deadline = time.monotonic() + 100
    while not (ended := finished(store_file)):
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    process.wait(60)
    (parent,) = runs_of(store_file, "sweep")
    if number == signal.SIGKILL:  # it may still say that it runs
        wait_until_no_group(process.pid)
    else:
        assert process.returncode == 1
        assert parent.info.status == "KILLED"
    ended = finished(store_file)

    done = command(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    (after,) = runs_of(store_file, "sweep")
    assert (after.info.run_id, after.info.status) == (parent.info.run_id, "FINISHED")
    assert after.data.tags["moesaic.continued"] == "1"
    assert after.data.metrics["points"] == 4
    first = done.stdout.splitlines()[0]
    assert first.startswith(f"Continues the sweep {parent.info.run_id[:8]} in ")
    assert first.endswith(f"of its points {len(ended)} are done.")
    assert done.stdout.count("done before, by run ") == len(ended)
    assert finished(store_file) >= ended
    assert len(finished(store_file)) == 4  # none of them twice
    assert {run.data.tags["mlflow.parentRunId"] for run in runs_of(store_file, "run")} == {parent.info.run_id}
    assert not [run for run in runs_of(store_file, "run") if run.info.status == "RUNNING"]
    assert len(list(Path("outputs/sweeps").glob("*/*"))) == 1


def finished(store_file: Path) -> set[str]:
    try:
        return {run.info.run_id for run in runs_of(store_file, "run") if run.info.status == "FINISHED"}
    except Exception:  # the experiment is not made yet
        return set()


def wait_until_no_group(group: int) -> None:
    """Workers end after their point when who launched them is gone."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        done = subprocess.run(["ps", "-eo", "pgid,stat"], capture_output=True, text=True, check=True)
        alive = [row for row in done.stdout.splitlines() if row.split()[0] == str(group) and "Z" not in row.split()[1]]
        if not alive:
            return
        time.sleep(0.2)
    raise AssertionError("workers are left")


def test_which_sweep_is_continued(store_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the tags of its run alone: an ended one is not, one of another command is not, and one can be named."""
    store = Store(f"sqlite:///{store_file}", "moesaic")
    words = ["run", "-m", "model=tiny", "collect=synthetic", "topology=1x2", "seed=1,2", "run.last=collect"]
    assert main([*words, "hydra.sweep.dir=one"]) == 0
    (first,) = runs_of(store_file, "sweep")
    assert main([*words, "hydra.sweep.dir=two"]) == 0
    assert len(runs_of(store_file, "sweep")) == 2  # the first one had ended
    second = runs_of(store_file, "sweep")[1].info.run_id
    store.client.set_terminated(second, "KILLED")
    assert main([*words, "hydra.sweep.dir=three"]) == 0  # another place was asked for
    assert main([*words[:-2], "seed=1,3", "run.last=collect", "hydra.sweep.dir=two"]) == 0  # another command
    assert len(runs_of(store_file, "sweep")) == 4
    store.client.set_terminated(second, "KILLED")
    store.tag(second, {"sweep_key": runs_of(store_file, "sweep")[2].data.tags["moesaic.sweep_key"]})
    capsys.readouterr()
    assert main([*words, f"sweep.resume={first.info.run_id[:10]}", "log=json"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert events[0] == {**events[0], "event": "sweep", "run_id": first.info.run_id, "done": 2}
    assert len(runs_of(store_file, "sweep")) == 4
    assert len(runs_of(store_file, "run")) == 8  # four sweeps of two points: none ran again
    assert main([*words, "sweep.resume=0123"]) == 2
    assert "No run of the experiment" in capsys.readouterr().err.splitlines()[-1]
    assert main([*words, f"sweep.resume={runs_of(store_file, 'run')[0].info.run_id}"]) == 2
    assert "is no sweep" in capsys.readouterr().err.splitlines()[-1]
