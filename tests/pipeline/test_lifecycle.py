"""Runs that end badly: signals, orphans, heartbeats, and two runs at once. Real processes against real SQLite."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import pipeline.orphans
import pipeline.store
from pipeline.audit import audit
from pipeline.lifecycle import Terminated, birth_tags, ending_raises, heartbeat, signals_held
from pipeline.orphans import reap_orphans
from pipeline.store import Store
from pipeline.summary import read_summary
from pipeline.writes import Write
from tests.pipeline.conftest import Toy

ROOT = Path(__file__).parents[2]


def start(toy: Toy, *overrides: str, name: str = "other") -> subprocess.Popen[str]:
    """The toy pipeline in a process of its own."""
    # SIGINT is ignored where a shell started the tests behind it.
    code = f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler); {toy.code(*overrides, name=name)}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=toy.folder, env=environment, stderr=subprocess.PIPE, text=True
    )


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        assert time.monotonic() < deadline
        time.sleep(0.02)


def end(process: subprocess.Popen[str], number: int) -> str:
    process.send_signal(number)
    return process.communicate(timeout=30)[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_signal_marks_the_run_killed_at_once(local_toy: Toy, number: int) -> None:
    ends_killed(local_toy, number)


def test_sigterm_marks_the_run_killed_in_any_store(toy: Toy) -> None:
    ends_killed(toy, signal.SIGTERM)


def ends_killed(toy: Toy, number: int) -> None:
    process = start(toy, "double.fail=wait")
    wait_for(toy.folder / "other" / "waiting", process)
    end(process, number)
    assert process.returncode != 0
    summary = read_summary(toy.folder / "other" / "summary.json")
    assert summary.status == "failed"
    assert summary.cause is not None
    assert "the same command continues" in summary.cause
    assert toy.store.run(str(summary.run_id)).info.status == "KILLED"
    assert toy.store.run(str(summary.stages["double"].run_id)).info.status == "KILLED"
    assert toy.states(toy()) == {"make": "cached", "double": "ran", "sum": "ran"}


def test_after_kill_9_the_next_run_continues_and_marks_the_orphan(toy: Toy) -> None:
    process = start(toy, "double.fail=kill")
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    left = toy.store.search("attributes.status = 'RUNNING'")
    assert len(left) == 2  # the run and its stage
    summary = toy()
    assert toy.states(summary) == {"make": "cached", "double": "ran", "sum": "ran"}
    assert toy.store.search("attributes.status = 'RUNNING'") == []
    for run in left:
        gone = toy.store.run(run.info.run_id)
        assert gone.info.status == "KILLED"
        assert gone.data.tags["moesaic.orphan"] == "true"
        assert "marked as orphan" in gone.data.tags["mlflow.note.content"]


def test_a_signal_waits_while_something_is_closed_whichever_thread_takes_it() -> None:
    seen = []
    busy, done = threading.Event(), threading.Event()
    thread = threading.Thread(
        target=lambda: (busy.set(), done.wait(20))
    )  # has no mask, so that the kernel may choose it
    thread.start()

    def close() -> None:
        with signals_held():
            assert busy.wait(20)
            for _ in range(3):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.05)
                seen.append("closed")

    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # ignored where a shell started the tests behind it
    try:
        with pytest.raises(KeyboardInterrupt):
            close()
    finally:
        signal.signal(signal.SIGINT, before)
    done.set()
    thread.join()
    assert seen == ["closed"] * 3


@pytest.mark.parametrize(
    ("number", "code", "last"),
    [
        (signal.SIGTERM, 1, "Terminated: Ended by SIGTERM: the same command continues"),
        (signal.SIGINT, -signal.SIGINT, "KeyboardInterrupt"),
    ],
)
def test_a_signal_waits_until_torch_is_imported(number: int, code: int, last: str) -> None:
    """Its C++ imports numpy, where an exception is lost or aborts the process."""
    script = f"""
import os, signal, sys, time
from pipeline.lifecycle import ending_raises
signal.signal(signal.SIGINT, signal.default_int_handler)
class Interrupt:
    def find_spec(self, name, *rest):
        if name == "numpy._core._methods" and "torch" in sys.modules:
            print(name, flush=True)
            os.kill(os.getpid(), {int(number)})
sys.meta_path.insert(0, Interrupt())
with ending_raises():
    import torch
    torch.zeros(1)
    print("imported", flush=True)
    time.sleep(20)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.stdout.split() == ["numpy._core._methods", "imported"]
    assert done.returncode == code
    assert last in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_not_lost_where_python_ignores_exceptions(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    class Deleted:
        def __del__(self) -> None:
            os.kill(os.getpid(), number)
            sum(range(1000))

    def works() -> None:
        Deleted()
        time.sleep(20)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with ending_raises(), pytest.raises((Terminated, KeyboardInterrupt)):
            works()
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == ""


def test_a_signal_in_any_write_of_a_stage_leaves_what_an_audit_finds_clean(
    local_toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes as soon as the store has the start, a data set, the files, the record, the last words or the end."""
    real, writes = pipeline.store.deliver, list[Write]()

    def signalled(client: Any, write: Write, *, again: bool = False) -> str:
        made = real(client, write, again=again)
        writes.append(write)
        if len(writes) == at:
            signal.raise_signal(signal.SIGTERM)
        return made

    monkeypatch.setattr(pipeline.store, "deliver", signalled)
    kinds = []
    for at in range(4, 12):
        writes.clear()
        with pytest.raises(Terminated):
            local_toy(f"make.count={at}")
        kinds.append(writes[at - 1].kind)
        run_id = str(read_summary(local_toy.directory / "summary.json").run_id)
        assert local_toy.store.search("attributes.status = 'RUNNING'") == [], kinds
        assert audit(local_toy.store, run_id).findings == [], kinds
    assert set(kinds) == {"start", "batch", "datasets", "files", "finish"}


def test_a_run_killed_between_its_last_words_and_its_end_is_what_it_sealed(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = str(toy().run_id)
    before = toy.store.run(run_id)
    toy.store.client.update_run(run_id, "RUNNING")
    monkeypatch.setattr(pipeline.orphans, "alive", lambda run: False)  # this process is not gone
    assert reap_orphans(toy.store) == []
    after = toy.store.run(run_id)
    assert (after.info.status, after.info.end_time) == ("FINISHED", before.info.end_time)
    assert audit(toy.store, run_id).findings == []


def test_a_live_run_of_this_host_is_never_touched(toy: Toy) -> None:
    process = start(toy, "double.fail=wait")
    try:
        wait_for(toy.folder / "other" / "waiting", process)
        toy("make.count=7")
        assert len(toy.store.search("attributes.status = 'RUNNING'")) == 2
    finally:
        end(process, signal.SIGTERM)


@pytest.mark.parametrize(
    ("change", "reaped"),
    [
        ({}, False),
        ({"host": "elsewhere"}, False),
        ({"host": "elsewhere", "heartbeat": "1000"}, True),
        ({"host": "elsewhere", "pid": "1"}, False),
        ({"pid_started": "1"}, True),
        ({"pid": "999999999"}, True),
        ({"heartbeat": "1000"}, False),
    ],
    ids=str,
)
def test_who_counts_as_an_orphan(toy: Toy, change: dict[str, str], reaped: bool) -> None:
    store = toy.store
    run_id = store.start("a run", {"kind": "run", **birth_tags(15), **change})
    assert reap_orphans(store) == ([run_id] if reaped else [])
    assert store.run(run_id).info.status == ("KILLED" if reaped else "RUNNING")


def test_a_foreign_run_is_left_alone(toy: Toy) -> None:
    other = toy.store.client.create_run(toy.store.experiment_id).info.run_id
    assert reap_orphans(toy.store) == []
    assert toy.store.run(other).info.status == "RUNNING"


def test_the_heartbeat_is_renewed_while_the_run_lives(toy: Toy) -> None:
    store = toy.store
    run_id = store.start("a run", {"kind": "run", **birth_tags(0.05), "heartbeat": "1"})
    with heartbeat(store, run_id, 0.05):
        deadline = time.monotonic() + 20
        while store.run(run_id).data.tags["moesaic.heartbeat"] == "1":
            assert time.monotonic() < deadline
            time.sleep(0.02)
    assert float(store.run(run_id).data.tags["moesaic.heartbeat"]) > 1e9


def test_four_runs_at_once_on_a_fresh_store(tmp_path: Path) -> None:
    """The first to come migrates the schema and names the experiment; all land in it."""
    (tmp_path / "outputs").mkdir()
    processes = [start(Toy(tmp_path), f"seed={n % 2}", name=f"run{n}") for n in range(4)]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    store = Store(f"sqlite:///{tmp_path / 'outputs' / 'mlflow.db'}", "moesaic")
    runs = store.search("tags.`moesaic.kind` = 'run'")
    assert len(runs) == 4
    assert {run.info.status for run in runs} == {"FINISHED"}
    for number in range(4):
        assert read_summary(tmp_path / f"run{number}" / "summary.json").status == "done"
