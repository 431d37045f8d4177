"""Updates that come to grief, as a user sees them: the last line, the record in MLflow, and the same command again."""

from __future__ import annotations

import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.cli import main
from pipeline.store import SQLITE, Store
from pipeline.summary import Summary, read_summary
from stages.execution import read_execution
from stages.holdings import read_holdings
from stages.update import worker
from tests.pipeline.test_cli import _quiet_logging  # noqa: F401
from tests.stages.update.processes import MARK, wait_until_gone
from tests.stages.update.trouble import Trouble, troubled_update

ROOT = Path(__file__).parents[2]
ARGUMENTS = (
    "model=tiny", "collect=synthetic", "topology=1x2", "place.redundant_experts=2", "update.staging_mib=0.02",
)  # fmt: skip
GO_ON = "the same command goes on from there."


@pytest.fixture
def here(store_file: Path) -> Path:
    return store_file.parent.parent


def run(here: Path, name: str) -> tuple[int, Summary]:
    code = main(["run", *ARGUMENTS, f"hydra.run.dir={here / name}"])
    return code, read_summary(here / name / "summary.json")


def check_record(here: Path, name: str, cause: str) -> None:
    """The run and its stage are FAILED with the cause as their notes, and journal.json is among the artifacts."""
    summary = read_summary(here / name / "summary.json")
    assert (summary.status, summary.cause) == ("failed", cause)
    assert [stage.state for stage in summary.stages.values()][-2:] == ["failed", "skipped"]
    store = Store(f"{SQLITE}{here / 'outputs' / 'mlflow.db'}", "moesaic")
    for run_id in (summary.run_id, summary.stages["update"].run_id):
        recorded = store.run(str(run_id))
        assert recorded.info.status == "FAILED"
        assert cause in recorded.data.tags["mlflow.note.content"]
    assert "journal.json" in store.files(store.run(str(summary.stages["update"].run_id)))
    assert store.search("attributes.status = 'RUNNING'") == []


def check_next(here: Path, first: int) -> None:
    """The same command does what is left, and all is verified."""
    code, summary = run(here, "next")
    assert (code, summary.status) == (0, "verified")
    assert [stage.state for stage in summary.stages.values()] == ["cached"] * 3 + ["ran"] * 2
    execution = read_execution(here / "next" / "update" / "execution.json")
    assert (execution.first, execution.committed) == (first, execution.batches)
    events = json.loads((here / "next" / "update" / "trace.json").read_text())["traceEvents"]
    ran = {int(found[1]) for event in events if (found := re.fullmatch(r"commit batch (\d+)", event["name"]))}
    assert ran == set(range(first, execution.batches))


@pytest.mark.parametrize(
    ("trouble", "code", "said", "lost"),
    [
        (
            Trouble("kill_during", who=1, batch=3), 1,
            (
                r"rank 1 was killed by SIGKILL in batch 3 of the update; slots 5-9 of each layer are lost with it; (3) of \d+ "
                rf"batches are committed on all ranks: {GO_ON}"
            ),
            [1],
        ),
        (
            Trouble("flip", who=0, batch=4), 3,
            (
                r"Expert \d of layer \d arrived wrong at rank 0 from rank 1 each time it was sent \(3 times\): tensor \w+ should "
                rf"be \w+, found \w+; nothing wrong was committed, and (\d+) of \d+ batches are: {GO_ON}"
            ),
            [],
        ),
        (
            Trouble("disagree", who=0), 3,
            (
                r"The replicas of expert 0 in layer 1 differ in tensor w13_weight before anything has moved: slot 0 "
                r"\(rank 0\) \w+, slot 8 \(rank 1\) \w+; 1 experts disagree, and nothing was (moved)\."
            ),
            [],
        ),
    ],
    ids=["a dead rank", "a bad link", "replicas"],
)  # fmt: skip
def test_a_fault_is_recorded_and_the_next_run_goes_on(
    here: Path, capsys: pytest.CaptureFixture[str], trouble: Trouble, code: int, said: str, lost: list[int]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "save_update", functools.partial(troubled_update, trouble=trouble, left=here))
        found, _ = run(here, "first")
    assert found == code
    cause = capsys.readouterr().err.strip().splitlines()[-1]
    told = re.fullmatch(said, cause)
    assert told, cause
    check_record(here, "first", cause)
    holdings = read_holdings(here / "first" / "update" / "journal.json")
    assert holdings.lost_ranks == lost
    first = 0 if told[1] == "moved" else int(told[1])
    assert min(count or 0 for count in holdings.committed) == first
    check_next(here, first)


def wait_for(file: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 90
    while not file.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_pipeline_that_is_killed_in_the_middle_of_an_update(here: Path) -> None:
    """Nothing can be recorded then; the journals of the ranks are there."""
    mark = f"{os.getpid()}-killed-pipeline"
    command = [sys.executable, "-m", "tests.pipeline.troubled", "wait", "1", "2", "run", *ARGUMENTS]
    process = subprocess.Popen(
        [*command, f"hydra.run.dir={here / 'first'}"],
        cwd=here,
        env={**os.environ, MARK: mark, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(here / "waiting", process)
    journals = list((here / "outputs" / "journal").glob("*/*"))
    assert len(journals) == 2
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    assert wait_until_gone(mark) == {}
    check_next(here, min(journal.read_bytes().count(b"\1") for journal in journals))


@pytest.mark.slow
def test_a_rank_of_torchrun_that_is_killed(here: Path) -> None:
    """torchrun ends all ranks when one has died, rank 0 and its pipeline too: the run is FAILED all the same, and says why."""
    mark = f"{os.getpid()}-torchrun-killed"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0"]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--log-dir", str(here / "torchrun")]
    command += ["-m", "tests.pipeline.troubled", "kill_during", "1", "3", "run", *ARGUMENTS]
    done = subprocess.run(
        [*command, f"hydra.run.dir={here / 'first'}"],
        cwd=here,
        env={**os.environ, MARK: mark, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 1
    assert wait_until_gone(mark) == {}
    cause = read_summary(here / "first" / "summary.json").cause
    assert cause is not None
    assert re.fullmatch(
        r"rank 1 is gone: last seen [a-z 0-9]+; slots 5-9 of each layer are lost with it; 3 of \d+ batches are committed on "
        rf"all ranks: {GO_ON}",
        cause,
    ), cause
    assert cause in done.stderr
    check_record(here, "first", cause)
    check_next(here, 3)
