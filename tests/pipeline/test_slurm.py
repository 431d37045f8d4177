"""`docs/slurm.sh` with a stand-in for srun, which starts its tasks on two hosts (network namespaces where there are any)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.summary import read_summary
from stages.execution import read_execution
from tests.network.hosts import hosts_or_loopback
from tests.stages.update.processes import MARK, wait_until_gone

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "docs" / "slurm.sh"


@pytest.mark.slow
def test_the_script_runs_the_pipeline_on_all_hosts(store_file: Path) -> None:
    here = store_file.parent.parent
    srun = here / "bin" / "srun"
    srun.parent.mkdir()
    srun.write_text(f'#!/bin/sh\nexec {sys.executable} -m tests.pipeline.fake_srun "$@"\n')
    srun.chmod(0o755)
    mark = f"{os.getpid()}-slurm"
    with hosts_or_loopback(2) as hosts:
        namespaces = [host.namespace for host in hosts if host.namespace]
        slurm = {
            "SLURM_JOB_ID": "4711",
            "SLURM_JOB_NUM_NODES": "2",
            "SLURM_NTASKS": "2",
            "FAKE_HOSTS": " ".join(namespaces),
            "FAKE_NODELIST": "10.77.0.[1-2]" if namespaces else "127.0.0.1",
            "PATH": f"{srun.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            MARK: mark,
        }
        done = subprocess.run(
            [
                *(SCRIPT, "model=tiny", "collect=synthetic", "place.redundant_experts=2", "update.staging_mib=0.02"),
                *("update.ranks=attached", f"hydra.run.dir={here / 'one'}"),
            ],
            cwd=here,
            env={**os.environ, **slurm},
            capture_output=True,
            text=True,
            timeout=150,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert wait_until_gone(mark) == {}
    assert read_summary(here / "one" / "summary.json").status == "verified"
    execution = read_execution(here / "one" / "update" / "execution.json")
    assert (execution.hosts, execution.ranks, execution.executor) == (2, 2, "pipelined")
    assert execution.batches > 3


@pytest.mark.parametrize(
    ("known", "said"),
    [
        ({}, "start this with sbatch, or within salloc"),
        ({"SLURM_JOB_NUM_NODES": "2"}, "the number of tasks is not known: give --ntasks-per-node"),
    ],
)
def test_the_script_says_what_it_lacks(known: dict[str, str], said: str) -> None:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
    done = subprocess.run([SCRIPT], env={**clean, **known}, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert said in done.stderr
