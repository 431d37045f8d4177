"""`moesaic completion SHELL`: what makes the shell complete commands, options and, by Hydra, overrides.

The script for a shell asks `moesaic completion --line "moesaic run mod"` for the words that the last one may become.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

SHELLS = {
    "bash": """\
# eval "$(moesaic completion bash)"
_moesaic() {
    local line="${COMP_LINE:0:COMP_POINT}" IFS=$'\\n' word before one
    word="${line##*[[:space:]]}"
    COMPREPLY=($("$1" completion --line "$line" 2>/dev/null))
    if [[ "$word" == *[=:]* ]]; then  # bash replaces only what follows the last word break
        before="${word%"${word##*[=:]}"}"
        COMPREPLY=("${COMPREPLY[@]#"$before"}")
    fi
    for one in "${COMPREPLY[@]}"; do
        case "$one" in *[=./]) compopt -o nospace ;; esac
    done
}
complete -o nosort -F _moesaic moesaic
""",
    "zsh": """\
# eval "$(moesaic completion zsh)"   (after compinit)
_moesaic() {
    local -a found open
    found=("${(@f)$("$words[1]" completion --line "${(j: :)words[1,CURRENT-1]} $PREFIX" 2>/dev/null)}")
    found=(${found:#})
    open=(${(M)found:#*[=./]})
    found=(${found:#*[=./]})
    (( $#open )) && compadd -S '' -- $open
    (( $#found )) && compadd -- $found
}
compdef _moesaic moesaic
""",
    "fish": """\
# moesaic completion fish | source
function __moesaic
    set -l command (commandline -po)[1]
    $command completion --line (commandline -cp | string collect) 2>/dev/null
end
complete -c moesaic -f -a '(__moesaic)'
""",
}
FLAGS = ("-m", "--multirun", "--cfg", "--resolve", "--config-dir", "--info", "--help", "--version")
"""Of Hydra's flags those that `moesaic run` has a use for."""
MOST_RUNS = 30
RUNS = ("RUN", "A", "B")
"""What arguments are called that name a run."""


def words(line: str, parser: argparse.ArgumentParser) -> list[str]:
    """What the last word of `line` may become. Nothing where that cannot be told: a shell shows no errors."""
    given = line.split()
    last = "" if not given or line[-1].isspace() else given.pop()
    before = given[1:]
    commands = _commands(parser)
    if not before:
        found: Iterable[str] = commands
    elif before[0] == "run":
        with suppress(Exception):
            return _overrides(before[1:], last)
        return []
    else:
        found = _options(commands[before[0]], before[-1]) if before[0] in commands else ()
    return [word for word in found if word.startswith(last)]


def _commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    subparsers = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return dict(subparsers.choices)


def _options(command: argparse.ArgumentParser, previous: str) -> Iterator[str]:
    """The values of the option before, else the command's choices, runs and options."""
    for action in command._actions:
        if previous in action.option_strings and action.nargs != 0:
            yield from map(str, action.choices or ())
            return
    for action in command._actions:
        if not action.option_strings:
            yield from map(str, action.choices or ())
            if action.metavar in RUNS:
                yield from _runs()
    for action in command._actions:
        yield from action.option_strings


def _runs() -> list[str]:
    """Ids of the latest runs and sweeps below `outputs`, the default place: without MLflow, which takes seconds."""
    here = Path("outputs")
    files = [*here.glob("runs/*/*/summary.json"), *here.glob("sweeps/*/*/sweep.json")]
    found = []
    for file in sorted(files, key=lambda file: file.stat().st_mtime, reverse=True)[:MOST_RUNS]:
        with suppress(OSError, ValueError):
            found.append(json.loads(file.read_text(encoding="utf-8")).get("run_id"))
    return [run_id[:12] for run_id in found if run_id]


def _overrides(before: list[str], last: str) -> list[str]:
    """Flags, config groups and keys with their values; of a sweep's list the part after the last comma."""
    if last.startswith("-"):
        return [flag for flag in FLAGS if flag.startswith(last)]
    head, comma, piece = last.rpartition(",") if "=" in last else ("", "", last)
    key = head.partition("=")[0] if comma else ""
    asked = f"{key}={piece}" if comma else piece
    found = [word for word in [*_listed(asked), *_by_hydra(before, asked)] if word.startswith(asked)]
    if not found and "=" in asked:
        found = [f"{asked.partition('=')[0]}={file}" for file in _files(asked.partition("=")[2])]
    return list(dict.fromkeys(f"{head},{word.partition('=')[2]}" if comma else word for word in found))


def _by_hydra(before: list[str], last: str) -> list[str]:
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.plugins.completion_plugin import DefaultCompletionPlugin

    from pipeline.attached import overrides_of
    from pipeline.schema import CONF, register

    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        plugin = DefaultCompletionPlugin(GlobalHydra.instance().config_loader())
        sweeps = ["-m"] if {"-m", "--multirun"} & set(before) else []
        line = " ".join([*sweeps, *overrides_of(before), last])
        return [word for word in plugin._query("config", line) if not word.endswith("=schema")]


def _listed(last: str) -> list[str]:
    """Values that no config group lists."""
    import yaml

    from pipeline.progress.view import LOGS
    from pipeline.schema import CONF

    stages = yaml.safe_load((CONF / "pipeline" / "default.yaml").read_text(encoding="utf-8"))["stages"]
    values: dict[str, Iterable[str]] = {"log": LOGS, "run.dry_run": ("true", "false")}
    values |= dict.fromkeys(("run.first", "run.last", "run.only"), stages)
    key, equals, _ = last.partition("=")
    return [f"{key}={value}" for value in values.get(key, ())] if equals else []


def _files(start: str) -> list[str]:
    folder = Path(start) if start.endswith("/") or not start else Path(start).parent
    name = "" if start.endswith("/") else Path(start).name
    prefix = start.removesuffix(name) if name else start
    with suppress(OSError):
        return [
            f"{prefix}{file.name}{'/' if file.is_dir() else ''}"
            for file in sorted(folder.iterdir())
            if file.name.startswith(name) and (name or not file.name.startswith("."))
        ]
    return []
