"""How far a run is: by the clock, on a real terminal, in a pipe, as JSON lines, and from another terminal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.cli import main
from pipeline.lifecycle import birth_tags
from pipeline.progress.json_lines import JsonLines
from pipeline.progress.meter import Meter, Reading, duration
from pipeline.progress.plain import EVERY_SECONDS, Plain
from pipeline.progress.telling import Telling, forget, parse, read_progress
from pipeline.progress.view import Lines
from pipeline.store import Store
from pipeline.summary import StageState
from stages.contract import Count
from tests.pipeline.conftest import Toy
from tests.pipeline.terminal import Terminal
from tests.pipeline.test_cli import _quiet_logging  # noqa: F401

TINY = ["model=tiny", "collect=synthetic", "topology=1x2"]
MOESAIC = [sys.executable, "-m", "pipeline.cli"]
ROOT = Path(__file__).parents[2]


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_rates_and_the_time_left_by_hand() -> None:
    clock = Clock()
    meter = Meter("update", clock)
    first = meter.read("updating", 0.0, Count("batches", 0, 10), Count("bytes", 0, 4e9))
    assert (first.left, first.counts[1].per_second) == (None, None)
    clock.now += 2
    reading = meter.read("updating", 0.2, Count("batches", 2, 10), Count("bytes", 1e9, 4e9))
    assert [count.per_second for count in reading.counts] == [1.0, 5e8]
    assert reading.left == 8.0  # by the batches, which take longer than the 6 s of the bytes
    assert reading.seconds == 2.0
    assert reading.text == "updating: 2 of 10 batches, 1 GB of 4 GB, 500 MB/s, 8 s left"
    clock.now += 60  # the rate is that of the last seconds
    reading = meter.read("updating", 0.3, Count("batches", 3, 10), Count("bytes", 1.2e9, 4e9))
    assert reading.counts[0].per_second == pytest.approx(1 / 60)
    assert reading.text.endswith("3.33 MB/s, 14 min 00 s left")
    clock.now += 1
    assert meter.read("hashing", 0.9).text == "hashing"  # something else: what was counted says nothing of it


def test_without_counts_the_fraction_tells_the_time_left_as_long_as_it_moves() -> None:
    clock = Clock()
    meter = Meter("collect", clock)
    meter.read("reading", 0.0)
    clock.now += 3
    assert meter.read("reading", 0.25).left == 9.0
    meter.read("writing", 0.9)
    clock.now += 5
    assert meter.read("writing", 0.9).left is None


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0 s"), (59.4, "59 s"), (60, "1 min 00 s"), (3599, "59 min 59 s"), (7260, "2 h 01 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_pipe_gets_a_line_from_time_to_time(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    view = Plain("#3 ", clock)
    view.stage("update", "runs", "first run")
    reading = Reading("update", "updating", 0.5, left=4.0)
    for _ in range(int(EVERY_SECONDS) * 2 + 1):
        view.progress(reading)
        clock.now += 1
    view.ended("update", StageState("ran", "", 21.0))
    view.ended("verify", StageState("ran", "", 0.1))
    shown = capsys.readouterr()
    assert shown.err.splitlines() == ["#3 update    50%    updating: 4 s left"] * 2
    assert shown.out.splitlines() == ["#3 update   runs    (first run)", "#3 update   ran     in 21 s"]


def test_json_lines_of_points(capsys: pytest.CaptureFixture[str]) -> None:
    view = JsonLines(4)
    view.stage("update", "runs", "first run")
    for part in (0.1, 0.2, 0.3):  # at most one a second
        view.progress(Meter("update").read("updating", part, Count("batches", 1, 2)))
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["event"], line["point"]) for line in lines] == [("stage", 4), ("progress", 4)]
    assert lines[1]["counts"] == [{"unit": "batches", "done": 1, "total": 2, "per_second": None}]


def test_the_terminal_shows_how_far_the_run_is_and_keeps_what_it_came_to(store_file: Path) -> None:
    here = store_file.parent.parent
    terminal = Terminal(
        [*MOESAIC, "run", "collect=synthetic", "topology=1x2", "place=eplb", "update.staging_mib=2"],
        here,
        {"PYTHONPATH": str(ROOT)},
    )
    assert terminal.end() == 0, terminal.text
    seen = "\n".join(terminal.frames)
    for words in ("collect ✓  place ✓  plan ✓  update …  verify", "━━━━", "%  update, ", " batches, ", " of "):
        assert words in seen, words
    lines = terminal.text.splitlines()
    assert [line.split()[0] for line in lines[:5]] == ["collect", "place", "plan", "update", "verify"]
    assert all(" runs    (first run)" in line for line in lines[:5])
    assert lines[5].startswith("Tokens observed")  # the live lines have gone
    assert "━" not in terminal.text
    assert "✓" not in terminal.text
    assert not list(here.glob("outputs/runs/*/*/.progress.json"))


def test_a_terminal_that_is_interrupted_is_left_clean(local_toy: Toy) -> None:
    terminal = Terminal(
        [*MOESAIC, "run", *TINY, "experiment=replay", "collect.windows=4000"],
        local_toy.folder,
        {"PYTHONPATH": str(ROOT)},
    )
    terminal.until("replaying with")
    terminal.until("windows/s")
    terminal.type("\x03")
    assert terminal.end() == 1
    assert terminal.text.splitlines()[-1].startswith("Interrupted: the stages that finished are kept")
    assert "━" not in terminal.text


def test_without_a_terminal_there_are_plain_lines_alone(local_toy: Toy) -> None:
    done = subprocess.run(
        [*MOESAIC, "run", *TINY, "run.last=place"], cwd=local_toy.folder, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stderr == ""
    assert "\x1b" not in done.stdout
    assert done.stdout.startswith("collect  runs    (first run)\nplace    runs    (first run)\nTokens observed")


def test_log_json_is_nothing_but_json(store_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", *TINY, "run.last=place", "log=json", "hydra.run.dir=one"]) == 0
    assert main(["run", *TINY, "run.last=place", "log=json", "hydra.run.dir=one", "place=nothing"]) == 2
    captured = capsys.readouterr()
    lines = [json.loads(line) for line in captured.out.splitlines()]
    assert all(isinstance(line["time"], float) for line in lines)
    events = [line["event"] for line in lines]
    assert events[0] == "run"
    assert {"stage", "progress", "result"} <= set(events)
    stages = [(line["stage"], line["state"]) for line in lines if line["event"] == "stage"]
    assert stages == [(name, state) for name in ("collect", "place") for state in ("runs", "ran")]
    result = next(line for line in lines if line["event"] == "result")
    assert result == {**result, **json.loads(Path("one/summary.json").read_text())}
    assert lines[-1] == {**lines[-1], "event": "error", "exit_code": 2}
    assert lines[-1]["cause"] == captured.err.strip().splitlines()[-1]


def test_what_a_stage_says_is_in_its_folder_while_it_is_true(tmp_path: Path) -> None:
    telling = Telling("update", Lines(print), tmp_path)
    telling("updating", 0.5, Count("batches", 1, 2))
    reading = read_progress(tmp_path)
    assert reading is not None
    assert reading.text == "updating: 1 of 2 batches"
    old = json.loads((tmp_path / ".progress.json").read_text())
    assert parse(json.dumps({**old, "time": old["time"] - 1000})) is None
    assert parse("") is None
    assert parse("[]") is None
    forget(tmp_path)
    assert read_progress(tmp_path) is None


def test_status_tells_how_far_a_run_is_and_whether_it_lives(local_toy: Toy, capsys: pytest.CaptureFixture[str]) -> None:
    folder = local_toy.folder / "going"
    store = local_toy.store
    run_id = store.start("a run", {"kind": "run", "directory": str(folder), **birth_tags(15)})
    Telling("update", Lines(print), folder)("updating", 0.25, Count("batches", 1, 4))
    assert main(["status", run_id]) == 0
    assert "now: update 25%, updating: 1 of 4 batches" in capsys.readouterr().out
    assert main(["status", run_id, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["progress"]["fraction"] == 0.25
    store.tag(run_id, {"progress": (folder / ".progress.json").read_text(), "directory": "/elsewhere"})
    assert main(["status"]) == 0  # as its heartbeat told the store
    assert "update 25%, updating: 1 of 4 batches" in capsys.readouterr().out
    store.tag(run_id, {"pid_started": "1"})
    assert main(["status", run_id, "--watch"]) == 1
    assert capsys.readouterr().out.startswith(f"{run_id}  gone\n")


def test_watching_a_run_until_it_has_ended(store_file: Path) -> None:
    here, environment = store_file.parent.parent, {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [*MOESAIC, "run", *TINY, "experiment=replay", "collect.windows=4000", "hydra.run.dir=one"]
    run = subprocess.Popen(
        command, cwd=here, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        store = Store(f"sqlite:///{store_file}", "moesaic")
        assert run.stdout is not None
        while "replay" not in run.stdout.readline():
            assert run.poll() is None
        (found,) = store.search("tags.`moesaic.kind` = 'run'")
        watching = Terminal([*MOESAIC, "status", found.info.run_id[:12], "--watch"], here, {"PYTHONPATH": str(ROOT)})
        watching.until("now: replay")
        run.send_signal(signal.SIGTERM)
        assert watching.end() == 1
        assert "cause: Ended by SIGTERM" in watching.text
        assert "now:" not in watching.text
    finally:
        run.kill()
        run.communicate()
