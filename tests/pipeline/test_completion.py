"""Completion, by the words it offers and in real shells."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest

from pipeline.cli import main
from tests.pipeline.terminal import Terminal

SET_UP = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], 'eval "$(moesaic completion bash)"'),
    "zsh": (["zsh", "-f", "-i"], 'autoload -U compinit; compinit -u -D; eval "$(moesaic completion zsh)"'),
    "fish": (["fish", "--no-config", "-i"], "moesaic completion fish | source"),
}


def offered(line: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    assert main(["completion", "--line", line]) == 0
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("moesaic st", ["status"]),
        ("moesaic run mod", ["model.", "model="]),
        ("/some/bin/moesaic run model=q", ["model=qwen3_235b_a22b", "model=qwen3_30b_a3b"]),
        ("moesaic run model=tiny place.redundant_e", ["place.redundant_experts="]),
        ("moesaic run -m place=contiguous,e", ["place=contiguous,eplb"]),
        ("moesaic run log=j", ["log=json"]),
        ("moesaic run run.last=p", ["run.last=place", "run.last=plan"]),
        ("moesaic run collect.path=lo", ["collect.path=loads.csv"]),
        ("moesaic run collect.path=sub/", ["collect.path=sub/a.npz"]),
        ("moesaic run --mul", ["--multirun"]),
        ("moesaic export 12 --to s", ["sglang"]),
        ("moesaic status --wa", ["--watch"]),
        ("moesaic status ab", ["abcdef012345"]),
        ("moesaic nothing ", []),
        ("moesaic run nothing=", []),
    ],
)
def test_what_the_last_word_may_become(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], line: str, words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loads.csv").touch()
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.npz").touch()
    run = tmp_path / "outputs" / "runs" / "today" / "now"
    run.mkdir(parents=True)
    (run / "summary.json").write_text('{"run_id": "abcdef0123456789"}')
    found = offered(line, capsys)
    assert (
        found == words
        if not line.endswith("nothing=")
        else all(word.endswith("=sub/") or "=" in word for word in found)
    )


@pytest.mark.parametrize("shell", SET_UP)
def test_a_real_shell_completes(shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    command, set_up = SET_UP[shell]
    programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    terminal = Terminal(command, tmp_path, {"PATH": programs, "PS1": "$ ", "HOME": str(tmp_path)})
    terminal.type(f"{set_up}; echo re''ady\r")
    terminal.until(lambda text: "\nready\n" in text, 30)  # and the next prompt is there
    terminal.type("moesaic run -m place.redundant_ex\t")
    terminal.until("place.redundant_experts=", 30)
    terminal.type("0,2 model=gpt\t")
    terminal.until("model=gpt_oss_20b", 30)
    terminal.type("log=js\t")
    terminal.until("log=json", 30)
    terminal.type("\x15moesaic stat\t")
    terminal.until("moesaic status", 30)
    terminal.type("--wa\t")
    terminal.until("moesaic status --watch", 30)
    terminal.type("\x15exit\r")
    terminal.end(30)
