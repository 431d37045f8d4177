"""The README is true: its commands run as written, its names are importable. (Links: tests/docs.)"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from pipeline.cli import main
from tests.pipeline.test_cli import _quiet_logging  # noqa: F401
from tests.stages.collect.engine_files import write_stat

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line
    for block in re.findall(r"```console\n(.*?)```", TEXT, flags=re.DOTALL)
    for line in block.splitlines()
    if line.strip()
]
ELSEWHERE = {
    "make demo": "the first thing CI's users do; it is `moesaic run` after an installation",
    "python3 -m venv .venv": "how this test's own environment was made",
    ".venv/bin/python -m pip install --constraint constraints.txt --editable .": "likewise",
    ".venv/bin/moesaic run": "the whole main job runs below as `moesaic run`",
}
NEED_GPUS = ("model=qwen3_30b_a3b",)
NEED_FILES = ("update.weights_path=OLMoE-1B-7B-0924",)
NEED_HOSTS = ("torchrun",)


def test_every_command_is_known() -> None:
    assert len(COMMANDS) >= 6
    for command in COMMANDS:
        assert command in ELSEWHERE or command.startswith(("moesaic ", *NEED_HOSTS)), command


@pytest.mark.parametrize("command", [c for c in COMMANDS if c not in ELSEWHERE and not c.startswith(NEED_HOSTS)])
def test_a_command_runs_as_written(command: str, store_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    if any(word in command for word in NEED_GPUS) and torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    if any(word in command for word in NEED_FILES):  # right but for the 14 GB that are not here
        assert main(shlex.split(command)[1:]) == 2
        last = capsys.readouterr().err.splitlines()[-1]
        assert last == "update.weights_path=OLMoE-1B-7B-0924 does not exist."
        return
    here = store_file.parent.parent
    (here / "my_loads.csv").write_text(
        "window,layer,expert,count\n" + "".join(f"0,{n // 16},{n % 16},{n + 1}\n" for n in range(32))
    )
    (here / "my_dumps").mkdir()
    count = np.random.default_rng(0).integers(0, 50, (150, 2, 16))
    write_stat(here / "my_dumps" / "expert_distribution_recorder_1764000000.5.pt", count)
    if "--config-dir" in command:  # what it takes from there, the command before it makes
        assert main(shlex.split(COMMANDS[COMMANDS.index(command) - 1])[1:]) == 0
    assert main(shlex.split(command)[1:]) == 0, capsys.readouterr().err


def test_python_snippets_run() -> None:
    snippets = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    assert snippets
    for snippet in snippets:
        exec(compile(snippet, "README.md", "exec"), {})


def test_the_table_in_the_readme_is_what_a_run_prints() -> None:
    from pipeline.headline import ROWS

    for row in ROWS:
        assert row.label in TEXT, row.label
