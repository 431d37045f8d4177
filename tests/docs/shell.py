"""A newcomer at a shell: runs the commands of a page in a folder of their own, `moesaic` in this process.

Commands that need what is not there (GPUs, hosts, a checkpoint, a port) are taken apart instead, as far as moesaic
takes them apart itself before it needs those things: their config is composed and checked.
"""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from pipeline.attached import overrides_of
from pipeline.cli import _parser, main
from pipeline.declaration import needed, selection
from pipeline.schema import CONF, check, register, stage_config
from pipeline.store import SQLITE, Store
from pipeline.ui import QUIET
from tests.docs.pages import ROOT

NOT_RUN = {
    r"make (install|demo)\b": "how the environment of this test was made",
    r"\. \.venv/bin/activate$": "likewise",
    r"moesaic ui$": "serves until it is interrupted",
    r"moesaic run .*update\.weights_path=OLMoE-1B-7B-0924": "needs a checkpoint of 14 GB",
    r"moesaic run model=qwen3_30b_a3b topology=1x2": "needs GPUs",
    r"moesaic run experiment=replay$": "the README has it, and there it is run",
    r"moesaic run .*collect=(transformers|sglang_server)": "needs a model, or a server",
    r"moesaic run -m model=deepseek_v3 .*topology\.nodes=2,4": "the README has its like, which is run",
    r"torchrun ": "needs several hosts",
    r"sbatch ": "needs Slurm; tests/pipeline/test_slurm.py runs the script",
}
RUN_ID = re.compile(r"\bRUN\b")


@dataclass
class Shell:
    """`said`: what the last command wrote to either stream. `server`: what the page started, on a port that is free;
    the page says 5000."""

    folder: Path
    monkeypatch: pytest.MonkeyPatch
    capsys: pytest.CaptureFixture[str]
    said: str = ""
    server: subprocess.Popen[bytes] | None = None
    port: str = "5000"

    def write(self, name: str, text: str) -> None:
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")

    def __call__(self, command: str) -> int:
        """Run a command as it is written; its exit code."""
        if command.startswith("mlflow server "):
            self._serve(command)
            return 0
        command = command.replace("127.0.0.1:5000", f"127.0.0.1:{self.port}")
        if command.startswith("export "):
            name, _, value = command.removeprefix("export ").partition("=")
            self.monkeypatch.setenv(name, value)
            if name == "PYTHONPATH":  # which a process of its own would begin with
                self.monkeypatch.syspath_prepend(str(self.folder / value))
            return 0
        if RUN_ID.search(command):
            command = RUN_ID.sub(self._latest_run(), command)
        self.capsys.readouterr()
        code = self._moesaic(command) if command.startswith("moesaic ") else self._bash(command)
        out, err = self.capsys.readouterr()
        self.said = f"{self.said}{out}{err}"
        return code

    def _moesaic(self, command: str) -> int:
        self.said = ""
        try:
            return main(shlex.split(command)[1:])
        except SystemExit as end:
            return int(end.code or 0)

    def _bash(self, command: str) -> int:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", "-c", command], capture_output=True, text=True, timeout=100, check=False, env={**os.environ, "PATH": path}
        )  # fmt: skip
        self.said = done.stdout + done.stderr
        return done.returncode

    def _serve(self, command: str) -> None:
        """Start a server in the background, and wait until it answers."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = str(probe.getsockname()[1])
        words = [self.port if word == "5000" else word for word in shlex.split(command)]
        log = self.folder / "server.log"
        with log.open("wb") as stream:
            self.server = subprocess.Popen(
                [sys.executable, "-m", *words, "--workers", "1"], env={**os.environ, **QUIET}, stdout=stream, stderr=stream
            )  # fmt: skip
        until = time.monotonic() + 100
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5).close()
                return
            except OSError:
                assert self.server.poll() is None, log.read_text()
                assert time.monotonic() < until, log.read_text()
                time.sleep(0.2)

    def close(self) -> None:
        if self.server is not None:
            self.server.terminate()
            self.server.wait()

    def _latest_run(self) -> str:
        store = Store(f"{SQLITE}{self.folder / 'outputs' / 'mlflow.db'}", "moesaic", create=False)
        query = "tags.`moesaic.kind` = 'run'"
        return str(store.search(query, limit=1)[0].info.run_id)


def reason_not_to_run(command: str) -> str | None:
    return next((why for pattern, why in NOT_RUN.items() if re.match(pattern, command)), None)


def take_apart(command: str) -> None:
    """Raise what moesaic, torchrun or Hydra would find wrong with a command, without running it."""
    words = shlex.split(command)
    if words[0] == "moesaic" and words[1] != "run":
        _parser().parse_args(words[1:])
    elif words[0] == "moesaic":
        compose_all(words[2:])
    elif words[0] == "torchrun":
        from torch.distributed.run import parse_args

        options = parse_args(words[1:])
        assert (options.module, options.training_script) == (True, "pipeline.cli"), command
        verb, *rest = options.training_script_args
        compose_all(rest) if verb == "run" else _parser().parse_args([verb, *rest])
    elif words[0] == "sbatch":
        script = next(n for n, word in enumerate(words) if word.endswith(".sh"))
        assert (ROOT / words[script]).is_file(), command
        compose_all(words[script + 1 :])


def compose_all(arguments: list[str]) -> list[Any]:
    """The configs of the stages that `moesaic run` with these arguments would run, for each point if it is a sweep."""
    register()
    overrides = overrides_of(arguments)
    points = [overrides]
    if {"-m", "--multirun"} & set(arguments):
        parsed = OverridesParser.create().parse_overrides(overrides)
        points = BasicSweeper.split_arguments(parsed, max_batch_size=None)[0]
    found = []
    for point in points:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose("config", point)
        root, specs = check(config)
        first, last = selection(specs, root.run)
        before = needed(specs, first, last)
        found += [
            stage_config(config, spec)
            for n, spec in enumerate(specs)
            if first <= n <= last or spec.name in before
        ]  # fmt: skip
    return found
