"""The command, as a user types it: exit codes, last lines, status, export. Planning stages only, so no ranks start."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from pipeline.cli import main
from pipeline.store import SQLITE, Store

TINY = ("model=tiny", "collect=synthetic", "topology=1x2", "run.last=plan")


@pytest.fixture(autouse=True)
def _quiet_logging() -> Iterator[None]:
    """Hydra configures the root logger with a file in the test's folder: take that back."""
    handlers = logging.root.handlers[:]
    yield
    for handler in logging.root.handlers[:]:
        if handler not in handlers:
            logging.root.removeHandler(handler)
            handler.close()


@pytest.fixture
def here(store_file: Path) -> Path:
    return store_file.parent.parent


def summary(folder: Path) -> dict[str, object]:
    value = json.loads((folder / "summary.json").read_text())
    assert isinstance(value, dict)
    return value


def test_a_run_leaves_what_the_design_says(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", *TINY, f"hydra.run.dir={here}/one"]) == 0
    value = summary(here / "one")
    assert value["status"] == "done"
    stages = value["stages"]
    assert isinstance(stages, dict)
    assert [(name, stage["state"]) for name, stage in stages.items()] == [
        ("collect", "ran"), ("place", "ran"), ("plan", "ran"), ("update", "skipped"), ("verify", "skipped"),
    ]  # fmt: skip
    assert set(stages["place"]) == {"state", "why", "seconds", "run_id", "key", "metrics"}
    assert {"balancedness", "moved_slots", "optimality_gap"} <= set(stages["place"]["metrics"])
    for file in ("collect/load.safetensors", "place/placement.json", "plan/transfers.parquet", "plan/traffic.json"):
        assert (here / "one" / file).is_file()
    out = capsys.readouterr().out
    assert "plan     runs    (first run)" in out
    assert "moesaic ui" in out
    assert main(["run", *TINY, "run.force=[plan]", f"hydra.run.dir={here}/two"]) == 0
    assert "place    cached  (run " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("overrides", "code", "sentence"),
    [
        (["place=foo"], 2, "place=foo is not known; allowed are contiguous, eplb, file, local_search."),
        (["topology=9x9"], 2, "topology=9x9 is not known; allowed are 1x1,"),
        (["place.redundant_experts=abc"], 2, "place.redundant_experts=abc is wrong: a whole number is expected."),
        (["place.foo=1"], 2, "place.foo is not a known key; allowed are algorithm,"),
        (["+place.foo=1"], 2, "place.foo is not a known key; allowed are algorithm,"),
        (["+bogus=1"], 2, "bogus is not a known key; allowed are collect,"),
        (["bogus=1"], 2, "bogus is not a known key;"),
        (["run.force=place"], 2, "run.force is wrong: a list is expected"),
        (["seed=x"], 2, "seed=x is wrong: a whole number is expected."),
        (["model.num_groups=7"], 2, "model.num_groups=7 does not divide model.experts="),
        (["run.last=nothing"], 2, "run.last=nothing is no stage; the stages are collect, place, plan, update, verify."),
        (["collect=table", "collect.path=gone.npz"], 2, "collect.path=gone.npz does not exist."),
        (["place.redundant_experts=-1"], 2, "place.redundant_experts=-1"),
        (["a b"], 2, "a b cannot be read as an override: write key=value (seed=1)"),
        (["place"], 2, "place cannot be read as an override: write key=value (seed=1)"),
        (["=1"], 2, "=1 is no override: write key=value, as in seed=1."),
        (["place=eplb,contiguous"], 2, "place=eplb,contiguous names several values: give -m to sweep over them, or"),
        (["run.dry_run=maybe"], 2, "run.dry_run=maybe is wrong: true or false is expected."),
        (["experiment=nothing"], 2, "experiment=nothing is not known; allowed are deepseek_v3_32,"),
        (["log=loud"], 2, "log=loud is not known; allowed are auto, live, plain, json."),
        (["hydra/launcher=ray", "-m"], 2, "hydra/launcher=ray is not installed: pip install 'moesaic[ray]' brings it."),
        (["--config-dir", "cfg", "place=mine"], 2, "mine.yaml, line 2 is no YAML: "),
        (["tracking.uri=sqlite:////proc/x.db"], 1, "The tracking store cannot be made: "),
        (["tracking.uri=sqlite:////proc/x.db"], 1, "check the path), or name another store (tracking.uri,"),
        (["topology.gpus_per_node=1000000"], 2, "are 1,000,000 ranks: at most 16,384 can be planned for"),
        (
            ["place.redundant_experts=1000000", "run.last=place"],
            2,
            "place.redundant_experts=1000000 is more than there is a use for: with 8 each of the 2 ranks holds all 8",
        ),
        (["seed=99999999999999999999"], 2, "it must be at most 9223372036854775807, which 64 bits hold."),
        (["tracking.uri=foo://bar"], 2, "foo://bar is no address of a tracking store: sqlite:///FILE,"),
        (["seed=1", "-m", "run.last=nothing"], 2, "run.last=nothing is no stage"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_config_exits_2_with_one_sentence(
    here: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], code: int, sentence: str
) -> None:
    if "hydra/launcher=ray" in overrides and find_spec("ray"):
        pytest.skip("it is installed")
    (here / "cfg" / "place").mkdir(parents=True)
    (here / "cfg" / "place" / "mine.yaml").write_text("a: [1\n")
    assert (
        main(["run", "model=tiny", "collect=synthetic", "topology=1x2", *overrides, f"hydra.run.dir={here}/x"]) == code
    )
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert sentence in last


def test_a_sweep_goes_on_after_a_point_that_cannot_be(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "run",
        "-m",
        *TINY,
        "run.last=place",
        "place.redundant_experts=0,-1,2",
        f"hydra.sweep.dir={here}/sweep",
    ]
    arguments.remove("run.last=plan")
    assert main(arguments) == 2
    states = [summary(here / "sweep" / str(n))["status"] for n in range(3)]
    assert states == ["done", "failed", "done"]
    assert summary(here / "sweep" / "2")["stages"]["collect"]["state"] == "cached"  # type: ignore[index]
    assert "1 of the sweep's runs failed" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("raised", "sentence"),
    [
        (OSError(28, "No space left on device", "x"), "No space left on device: x (make room there,"),
        (OSError(28, "No space left on device", "from", None, "to"), "No space left on device: to (make room there,"),
        (BrokenPipeError(32, "Broken pipe"), "Broken pipe (nobody reads what is written any more;"),
        (MemoryError("23 TiB"), "There is not enough memory for this (23 TiB): make it smaller,"),
        (RuntimeError("a bug"), "RuntimeError: a bug"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_whatever_a_run_dies_of_it_does_not_exit_0(
    here: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    raised: Exception,
    sentence: str,
) -> None:
    def fails(**options: object) -> None:
        raise raised

    monkeypatch.setattr("stages.collect.stage.generate", fails)
    assert main(["run", *TINY, "log=json", f"hydra.run.dir={here}/one"]) == 1
    captured = capsys.readouterr()
    assert sentence in captured.err.splitlines()[-1]
    assert ("Traceback" in captured.err) == isinstance(raised, RuntimeError)
    assert json.loads(captured.out.splitlines()[-1])["exit_code"] == 1
    assert summary(here / "one")["status"] == "failed"


def test_a_command_whose_output_is_closed_does_what_it_was_asked_for(here: Path) -> None:
    command = f"{sys.executable} -m pipeline.cli run {' '.join(TINY)} hydra.run.dir={here}/one >&-"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, shell=True, cwd=here, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert summary(here / "one")["status"] == "done"


def test_a_signal_while_the_config_is_composed_is_no_mistake_in_it(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from omegaconf import OmegaConf, open_dict

    from pipeline import app

    def interrupted(**options: object) -> object:
        config = OmegaConf.create({"a": {"b": 1}})
        OmegaConf.set_struct(config, True)
        try:
            with open_dict(config):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(5)
        finally:
            OmegaConf.create({"c": "${gone}"}).c  # noqa: B018 (as a library that cleans up may)
        return None

    monkeypatch.setattr(app.hydra, "main", interrupted)
    assert main(["run", *TINY]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("Ended by SIGTERM: the same command continues")


def test_a_search_for_what_no_run_measures_says_so(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    search = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "place.redundant_experts=choice(0,2)"]
    overrides = [*TINY, *search, "sweep.objectives=[place.nothing]", f"hydra.sweep.dir={here}/sweep"]
    assert main(["run", "-m", *overrides]) == 2
    captured = capsys.readouterr().err
    assert captured.splitlines()[-1].startswith("sweep.objectives: the run has no place.nothing; it has ")
    assert "Traceback" not in captured


def test_a_search_needs_a_direction_for_each_objective(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    search = ["hydra/sweeper=optuna", "hydra.sweeper.direction=[maximize,minimize]", f"hydra.sweep.dir={here}/sweep"]
    assert main(["run", "-m", *TINY, *search, "place.redundant_experts=choice(0,2)"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("sweep.objectives has 1 metrics and hydra.sweeper.direction 2: give as many of each")
    assert not list(here.glob("sweep/*/summary.json"))


def test_a_search_may_try_a_point_twice(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    search = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "place.redundant_experts=choice(2)"]
    together = ["hydra.sweeper.n_jobs=3", f"hydra.sweep.dir={here}/sweep"]
    assert main(["run", "-m", *TINY, *search, *together]) == 0, capsys.readouterr().err
    assert [summary(here / "sweep" / str(n))["status"] for n in range(3)] == ["done"] * 3


def test_runs_that_take_different_windows_of_a_file_have_one_data_set(here: Path) -> None:
    np.save("loads.npy", np.ones((6, 4, 8), dtype=np.int64))
    command = ["run", "model=tiny", "collect=table", "collect.path=loads.npy", "run.last=collect"]
    for window in (1, 3):
        assert main([*command, f"collect.window={window}"]) == 0
    runs = Store(f"{SQLITE}{here / 'outputs' / 'mlflow.db'}", "moesaic").search("tags.`moesaic.kind` = 'run'")
    assert [run.data.metrics["collect.windows"] for run in runs] == [2, 6]
    held = [item.dataset for run in runs for item in run.inputs.dataset_inputs]
    assert len({dataset.digest for dataset in held}) == 1
    assert [dataset.profile for dataset in held] == ["{}", "{}"]  # it would be that of the first run for both


def test_status_and_export(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status"]) == 2
    assert "has no experiment 'moesaic' yet" in capsys.readouterr().err
    assert main(["run", *TINY, f"hydra.run.dir={here}/one"]) == 0
    run_id = str(summary(here / "one")["run_id"])
    capsys.readouterr()
    assert main(["status"]) == 0
    assert run_id[:8] in capsys.readouterr().out
    assert main(["status", run_id[:10], "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["status"] == "done"
    assert shown["stages"]["place"]["metrics"]["moved_slots"] >= 0
    assert main(["status", run_id[:10]]) == 0
    assert "balancedness_before" in capsys.readouterr().out
    assert main(["export", run_id[:10], "--to", "sglang", "--out", str(here / "map.json")]) == 0
    exported = json.loads((here / "map.json").read_text())
    assert set(exported) == {"physical_to_logical_map"}
    placed = load_file(here / "one" / "place" / "placement.safetensors")["physical_to_logical_map"]
    rows = np.array(exported["physical_to_logical_map"])
    assert np.array_equal(rows[-len(placed) :], placed)
    capsys.readouterr()
    for prefix, words in (("zzz", "is no run id"), ("0000000000", "No run of the experiment")):
        assert main(["status", prefix]) == 2
        assert words in capsys.readouterr().err


def test_export_refuses_a_placement_that_was_tampered_with(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", *TINY, f"hydra.run.dir={here}/one"]) == 0
    value = summary(here / "one")
    place = value["stages"]["place"]["run_id"]  # type: ignore[index]
    stored = next((here / "outputs" / "mlartifacts").glob(f"{place}/artifacts/placement.safetensors"))
    data = bytearray(stored.read_bytes())
    data[-1] ^= 1
    stored.write_bytes(data)
    assert main(["export", str(value["run_id"]), "--to", "sglang", "--out", str(here / "map.json")]) == 2
    assert "was changed since it was made" in capsys.readouterr().err
    assert not (here / "map.json").exists()


def test_no_store_is_said_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert main(["status"]) == 2
    assert "There is no tracking store at" in capsys.readouterr().err
    assert main(["ui"]) == 2
    assert not (tmp_path / "outputs").exists()


def test_doctor_names_what_is_there(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    findings = {finding["what"]: finding for finding in json.loads(capsys.readouterr().out)}
    assert {"Python", "torch", "gloo (CPU ranks)", "NCCL (GPU ranks)", "GPUs", "tracking store"} <= set(findings)
    assert findings["torch"]["ok"]
    assert main(["doctor"]) == 0
    assert "ok       Python" in capsys.readouterr().out
    assert main(["doctor", "--tracking-uri", "http://127.0.0.1:9"]) == 1
    assert "MISSING  tracking store" in capsys.readouterr().out


def test_help_names_the_commands() -> None:
    done = subprocess.run([sys.executable, "-m", "pipeline.cli", "--help"], capture_output=True, text=True, check=True)
    for command in ("run", "status", "export", "ui", "doctor"):
        assert f"\n    {command}" in done.stdout


def test_the_last_line_names_a_command_that_the_shell_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline import table

    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "moesaic").touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(programs / "python"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/nowhere")
    assert table._command() == ".venv/bin/moesaic"
    monkeypatch.setenv("PATH", str(programs))
    assert table._command() == "moesaic"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["status", "-n", "0"], 2, "0 is not between 1 and 1000"),
        (["status", "-n", "x"], 2, "x is no whole number"),
        (["ui", "--port", "99999999"], 2, "99999999 is no port: give a number from 1 to 65535"),
        (["completion", "tcsh"], 2, "choose from"),
        (["status", "--tracking-uri", "sqlite:///{here}/junk.db"], 1, "cannot be used"),
        (
            ["status", "--tracking-uri", "sqlite:///{here}/junk.db"],
            1,
            "; mend that, or name another store (tracking.uri,",
        ),
        (
            ["run", *TINY, "hydra.run.dir=/proc/x"],
            1,
            "No such file or directory: /proc/x (that file, or a folder on the",
        ),
        (["sync", "/nope"], 2, "/nope is no folder: name that of a run or a sweep, or the beginning of a run's id."),
        (["export", "0", "--to", "sglang", "--out", "{here}"], 2, "name a file in a folder that exists"),
        (["status", "--tracking-uri", "foo://bar"], 2, "foo://bar is no address of a tracking store: sqlite:///FILE,"),
        (["status", "--tracking-uri", "mlruns"], 2, "mlruns is no address of a tracking store: sqlite:///FILE,"),
        (["gc", "--older-than", "soon"], 2, "soon is no number of days"),
        (
            ["export", "0", "--to", "trtllm", "--out", "x.yaml", "--layer-updates-per-iter", "x"],
            2,
            "x is no whole number",
        ),
        (["doctor", "--nodes", "2"], 2, "--nodes and --gpus-per-node are for --calibrate: give it too."),
        (["sync", "--tracking", "nosql"], 2, "choose from"),
        (
            ["ui", "--tracking", "server", "--tracking-uri", "sqlite:///x.db"],
            2,
            "--tracking-uri sqlite:///x.db is no address for --tracking server: http://HOST:PORT or https://…",
        ),
        (
            ["status", "--tracking-uri", "http://127.0.0.1:9"],
            1,
            "The tracking store http://127.0.0.1:9 cannot be used: nobody answers there; start the server, or name",
        ),
    ],
)
def test_bad_arguments_get_one_sentence(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, words: str
) -> None:
    assert main(["run", *TINY, f"hydra.run.dir={here}/one"]) == 0
    (here / "junk.db").write_text("no database")
    capsys.readouterr()
    try:
        found = main([argument.format(here=here) for argument in arguments])
    except SystemExit as end:  # argparse
        found = int(str(end.code))
    assert found == code
    assert words in capsys.readouterr().err.strip().splitlines()[-1]


def test_what_this_machine_cannot_run_is_said_before_anything_runs(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has GPUs")
    overrides = [o for o in TINY if not o.startswith("run.last")]
    assert main(["run", *overrides, "update.backend=nccl", f"hydra.run.dir={here}/one"]) == 2
    captured = capsys.readouterr()
    assert "update.backend=nccl is not possible" in captured.err.strip().splitlines()[-1]
    assert "collect  runs" not in captured.out


def test_a_user_id_without_an_account_is_no_obstacle(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("USER", "LOGNAME", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.getuid", lambda: 54321)
    assert main(["run", *TINY, f"hydra.run.dir={here}/one"]) == 0
