"""Ranks that die, raise or hang stop all of them within seconds, with one sentence; none is left behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from stages.errors import MoesaicError
from stages.update.failures import RanksLost
from stages.update.launch import launch
from stages.update.progress_board import Phase, Report
from tests.stages.update.cases import Case, config_of, job_of
from tests.stages.update.processes import MARK, alive, wait_until_gone
from tests.stages.update.rank_entries import give_up_waiting, say_environment, spoil, wait_in_layer

ROOT = Path(__file__).parents[3]
CASE = Case(nodes=2, slots_per_rank=3, experts=6, layers=6)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("SIGKILL", "rank 3 was killed by SIGKILL in layer 4 of the update"),
        ("SIGSEGV", "rank 3 was killed by SIGSEGV in layer 4 of the update"),
        ("raise", "rank 3 failed in layer 4: RuntimeError: the weights are gone"),
        ("exit", "rank 3 ended with exit code 0 in layer 4 of the update"),
    ],
)
def test_one_rank_in_trouble_stops_all(how: str, message: str) -> None:
    with pytest.raises(MoesaicError) as caught:
        launch(spoil, (config_of(CASE, 4), job_of(CASE, 4), how, 3, 4), 4)
    assert str(caught.value) == message
    assert multiprocessing.active_children() == []
    if how == "raise":
        assert "come_to_grief" in "".join(caught.value.__notes__)


def test_a_rank_that_hangs_is_noticed_by_its_peers_and_stopped() -> None:
    with pytest.raises(MoesaicError, match=r"^rank \d failed in layer [1-5]: .*; rank \d did not answer: last seen "):
        launch(spoil, (config_of(CASE, 2), job_of(CASE, 2), "hang", 1, 1), 2, timeout_seconds=1)
    assert multiprocessing.active_children() == []


def test_a_rank_that_is_ended_by_its_watchdog_names_the_one_it_waited_for() -> None:
    with pytest.raises(RanksLost) as caught:
        launch(give_up_waiting, (), 2)
    assert str(caught.value) == "rank 0 gave up waiting in batch 5; rank 1 did not answer: last seen in batch 6"
    assert caught.value.ranks == (1,)


def test_killed_from_outside_while_others_wait() -> None:
    """The pid of a rank is what an OOM killer knows."""

    def kill_one(report: Report) -> None:
        if report.phase == Phase.update:
            victim = min(child.pid or 0 for child in multiprocessing.active_children())
            os.kill(victim, signal.SIGKILL)

    with pytest.raises(MoesaicError, match=r"^rank \d was killed by SIGKILL in layer 7 of the update$"):
        launch(wait_in_layer, (7,), 3, on_report=kill_one)
    assert multiprocessing.active_children() == []


def test_ranks_see_the_environment_of_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MARK, "now")
    monkeypatch.setenv("OMP_NUM_THREADS", "17")
    monkeypatch.delenv("NCCL_NVLS_ENABLE", raising=False)
    launch(say_environment, (tmp_path,), 2, oversubscribe=True)
    assert (tmp_path / "1").read_text() == f"0 lo {max(1, len(os.sched_getaffinity(0)) // 2)} now -"
    monkeypatch.setenv("NCCL_NVLS_ENABLE", "1")
    launch(say_environment, (tmp_path,), 1)
    assert (tmp_path / "0").read_text().startswith("1 lo ")


def test_launch_from_a_thread() -> None:
    failures: list[BaseException] = []

    def run() -> None:
        try:
            launch(spoil, (config_of(CASE, 2), job_of(CASE, 2), "raise", 0, 2), 2)
        except MoesaicError as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(60)
    assert [str(failure) for failure in failures] == ["rank 0 failed in layer 2: RuntimeError: the weights are gone"]


class Terminated(BaseException):
    """What a program may raise on SIGTERM."""


@dataclass
class Alarm:
    """An argument that raises SIGTERM while it is sent to the rank that starts second."""

    sent: int = 0

    def __reduce__(self) -> tuple[type[int], tuple[()]]:
        self.sent += 1
        if self.sent == 2:
            signal.raise_signal(signal.SIGTERM)
        return int, ()


def test_terminated_while_ranks_start() -> None:
    """torch elastic has its own handlers then, and does not know the ranks that it is still starting."""

    def terminate(number: int, frame: object) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        with pytest.raises(Terminated):
            launch(wait_in_layer, (Alarm(),), 3)
        assert signal.getsignal(signal.SIGTERM) is terminate
    finally:
        signal.signal(signal.SIGTERM, before)
    assert multiprocessing.active_children() == []


def start_script(mark: str) -> subprocess.Popen[str]:
    """The script, in a session of its own, when its ranks have reached layer 7."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.stages.update.interrupted_script", "3"],
        cwd=ROOT,
        env={**os.environ, MARK: mark},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "in layer 7\n"
    assert len(alive(mark)) >= 5  # the script, the server and the ranks
    return process


@pytest.mark.parametrize(
    ("name", "whole_group", "said"),
    [
        ("SIGINT", True, "interrupted, children left: 0"),
        ("SIGTERM", False, "terminated, children left: 0"),
    ],
)
def test_signals_reach_the_caller_and_no_rank_stays(name: str, whole_group: bool, said: str) -> None:
    """Ctrl-C reaches the whole group of processes, `kill` the program alone."""
    mark = f"{os.getpid()}-{name}-{whole_group}"
    process = start_script(mark)
    send = os.killpg if whole_group else os.kill
    send(process.pid, getattr(signal, name))
    out, err = process.communicate(timeout=20)
    assert out.splitlines() == [said, "handlers kept: True"]
    assert err == ""
    assert process.returncode == 0
    assert wait_until_gone(mark) == {}


def test_nothing_survives_a_parent_that_is_killed() -> None:
    mark = f"{os.getpid()}-killed"
    process = start_script(mark)
    process.kill()
    process.wait(timeout=20)
    assert wait_until_gone(mark) == {}
    assert "Traceback" not in process.communicate()[1]


def test_nothing_survives_a_parent_that_dies_while_ranks_start() -> None:
    mark = f"{os.getpid()}-starting"
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.stages.update.interrupted_script", "4"],
        cwd=ROOT,
        env={**os.environ, MARK: mark},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while len(alive(mark)) < 4 and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    process.wait(timeout=20)
    assert wait_until_gone(mark, 20) == {}


def test_the_server_says_nothing_about_ctrl_c_while_it_imports() -> None:
    script = """
import os, signal, sys
class Interrupt:
    def find_spec(self, name, *rest):
        if name == "torch":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupt())
import stages.update.server
assert "torch" in sys.modules
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
"""
    command = f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler){script}"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
