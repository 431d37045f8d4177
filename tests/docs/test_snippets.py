"""The commands of the docs do what their page says. A page's blocks are run from top to bottom, in one folder:

```console         commands, which succeed; `exit=2` behind it: the last one ends with that code
```text            right after commands: lines that the last of them wrote, in this order
```csv NAME        a file that the reader makes (any language with a name)
```python          a program of its own, which runs
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from stages.errors import BadInput
from tests.docs.pages import PAGES, ROOT, Block, blocks
from tests.docs.shell import NOT_RUN, Shell, reason_not_to_run, take_apart
from tests.pipeline.test_cli import _quiet_logging  # noqa: F401

WITH_COMMANDS = [
    page for page in PAGES if any(b.language == "console" for b in blocks(page.read_text(encoding="utf-8")))
]
LANGUAGES = {"console", "text", "python", "yaml", "csv", "json", "shell"}
ENDINGS = {"python": ".py", "yaml": ".yaml", "csv": ".csv"}
HEXADECIMAL = re.compile(r"\b[0-9a-f]{8}\b")


@pytest.fixture
def shell(store_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Shell]:
    known = set(sys.modules)
    here = Shell(store_file.parent.parent, monkeypatch, capsys)
    yield here
    here.close()
    for name in set(sys.modules) - known:  # what a page makes is its own: my_policy.py
        if name.startswith("my_"):
            del sys.modules[name]


def expected(line: str) -> re.Pattern[str]:
    """A line of a page as a pattern: spaces in any number, and any run id for a run id."""
    words = [HEXADECIMAL.sub("[0-9a-f]{8}", re.escape(word)) for word in line.split()]
    return re.compile(r"\s+".join(words))


def missing(lines: list[str], said: str) -> list[str]:
    """The lines that are not in `said`, or not in this order."""
    at, out = 0, []
    for line in lines:
        found = expected(line).search(said, at)
        if found is None:
            out.append(line)
        else:
            at = found.end()
    return out


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_runs_from_top_to_bottom(page: Path, shell: Shell) -> None:
    before: Block | None = None
    for block in blocks(page.read_text(encoding="utf-8")):
        if block.language == "console":
            _run(block, shell)
        elif block.language == "text" and before is not None and before.language == "console":
            assert missing(block.text.splitlines(), shell.said) == [], f"{before.text}\nwrote\n{shell.said}"
        elif block.rest:
            shell.write(block.rest, block.text)
        elif block.language == "python":
            exec(compile(block.text, page.name, "exec"), {})
        before = block


def _run(block: Block, shell: Shell) -> None:
    wanted = int(block.rest.removeprefix("exit=") or 0) if block.rest else 0
    *first, last = block.commands
    for command, code in [*((each, 0) for each in first), (last, wanted)]:
        if reason_not_to_run(command) is None:
            assert shell(command) == code, f"{command}\nwrote\n{shell.said}"
        else:
            take_apart(command)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_says_what_it_is(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    found = blocks(text)
    assert len(found) * 2 == len(re.findall(r"^```", text, flags=re.MULTILINE))
    for block in found:
        assert block.language in LANGUAGES, block
        if block.rest and block.language != "console":
            assert block.rest.endswith(ENDINGS[block.language]), block
        if block.language == "yaml":
            yaml.safe_load(block.text)
        elif block.language == "json":
            json.loads(block.text)
        elif block.language == "shell":  # of an engine: it parses, and JSON in it does
            for command in block.commands:
                for word in shlex.split(command):
                    assert not word.startswith("{") or json.loads(word)


def test_what_is_not_run_is_still_checked() -> None:
    with pytest.raises(BadInput, match=r"update\.retries=-1 must not be negative"):
        take_apart("moesaic run model=tiny collect=synthetic update.retries=-1")
    with pytest.raises(BadInput, match=r"place\.seconds=-1\.0 is not possible"):
        take_apart("moesaic run -m topology=1x2,1x4 place.seconds=30,-1")
    with pytest.raises(SystemExit):
        take_apart("moesaic export RUN --to nowhere --out x")
    with pytest.raises(Exception, match="no_such"):
        take_apart("torchrun --nnodes 2 --nproc-per-node 8 -m pipeline.cli run no_such=1")
    with pytest.raises(StopIteration):
        take_apart("sbatch --nodes 2")


def test_lines_are_looked_for_in_order() -> None:
    said = "place    cached  (run 0a1b2c3d)\nplan  runs (first run)\n"
    assert missing(["place cached (run ffffffff)", "plan runs (first run)"], said) == []
    assert missing(["plan runs (first run)", "place cached (run ffffffff)"], said) == ["place cached (run ffffffff)"]


def test_what_is_not_run_has_a_reason_that_holds() -> None:
    def commands(page: Path) -> list[str]:
        return [c for b in blocks(page.read_text(encoding="utf-8")) if b.language == "console" for c in b.commands]

    said = [command for page in PAGES for command in commands(page)]
    for pattern, why in NOT_RUN.items():
        assert any(re.match(pattern, command) for command in said), f"{pattern}: no page has it any more"
        if "README" in why:
            assert any(re.match(pattern, command) for command in commands(ROOT / "README.md")), pattern
