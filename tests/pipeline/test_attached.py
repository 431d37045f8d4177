"""`moesaic run` started by torchrun: rank 0 drives the pipeline, the others follow and end with its exit code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.summary import read_summary

ROOT = Path(__file__).parents[2]
TINY = ("model=tiny", "collect=synthetic", "topology=1x2")


def torchrun(here: Path, name: str, *overrides: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--log-dir", str(here / "torchrun")]
    command += ["-m", "pipeline.cli", "run", *TINY, f"hydra.run.dir={here / name}", *overrides]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True, timeout=150, check=False)


@pytest.mark.slow
def test_torchrun_starts_the_ranks(store_file: Path) -> None:
    here = store_file.parent.parent
    done = torchrun(here, "one")
    assert done.returncode == 0, done.stderr
    summary = read_summary(here / "one" / "summary.json")
    assert summary.status == "verified"
    assert done.stdout.count("update   runs") == 1
    again = torchrun(here, "two")
    assert again.returncode == 0, again.stderr
    assert {stage.state for stage in read_summary(here / "two" / "summary.json").stages.values()} == {"cached"}


@pytest.mark.slow
def test_an_error_of_the_pipeline_ends_the_followers_too(store_file: Path) -> None:
    here = store_file.parent.parent
    done = torchrun(here, "bad", "collect=table", "collect.path=gone.csv")
    assert done.returncode != 0
    assert "collect.path=gone.csv does not exist." in done.stderr
