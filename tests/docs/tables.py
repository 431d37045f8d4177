"""Write the generated tables of the docs anew, after a change of the config: python -m tests.docs.tables

A page marks where a table goes, and which: `<!-- table: config place -->` … `<!-- end -->`. Keys, types and defaults
come from the schema, meanings from its docstrings, choices from the first comment of their files in `conf`, commands from
their parsers.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import re
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from pipeline.cli import _parser
from pipeline.declaration import StageDeclaration
from pipeline.schema import CONF, ROOT_GROUPS, _stage_groups, register
from stages.model import ModelSpec, TensorSpec
from tests.docs.meanings import meanings
from tests.docs.pages import PAGES, ROOT

MARKED = re.compile(r"(<!-- table: (?P<what>[a-z_ ]+) -->\n).*?(<!-- end -->)", re.DOTALL)
OWN_DEFAULTS = ("model", "topology")
"""Groups whose choices each have their own values: their tables have the defaults of the schema."""

Row = tuple[str, ...]


def written(text: str) -> str:
    """A page with its tables as they should be."""
    return MARKED.sub(lambda found: f"{found[1]}{_table(found['what'])}{found[3]}", text)


def tables_of(text: str) -> list[str]:
    return [found["what"] for found in MARKED.finditer(text)]


def missing() -> set[str]:
    """Tables that no page has: of the keys of a group, or of its choices where it has several."""
    there = {table for page in PAGES for table in tables_of(page.read_text(encoding="utf-8"))}
    choices = {folder.name for folder in CONF.iterdir() if len(list(folder.glob("*.yaml"))) > 1} - {"model", "pipeline"}
    wanted = {*(f"config {group}" for group in groups()), *(f"choices {group}" for group in choices)}
    return wanted - there | {"models", "stages", "commands"} - there


@cache
def groups() -> dict[str, type[Any]]:
    """Every config group with a schema."""
    return {**ROOT_GROUPS, **_stage_groups(), "stage": StageDeclaration}


def _table(what: str) -> str:
    kind, _, name = what.partition(" ")
    return _markdown(*KINDS[kind](name))


def _markdown(head: Row, rows: Sequence[Row]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def _config(group: str) -> tuple[Row, list[Row]]:
    prefix = "pipeline.stages.NAME" if group == "stage" else group
    return ("key", "type", "default", "meaning"), list(_keys(groups()[group], prefix, _defaults(group), {}))


def _keys(kind: type[Any], prefix: str, defaults: Mapping[str, Any], told_at: dict[type[Any], str]) -> Iterator[Row]:
    """A row a key; of a dataclass within it, a row that says what it is, and its own. `told_at`: where the keys of a
    dataclass were explained already, so that they are only once."""
    told, hints = meanings(kind), typing.get_type_hints(kind)
    if kind in told_at:
        told = {name: f"as `{told_at[kind]}.{name}`" for name in told}
    told_at.setdefault(kind, prefix)
    for each in dataclasses.fields(kind):
        key, hint = f"{prefix}.{each.name}", hints[each.name]
        if dataclasses.is_dataclass(hint):
            yield f"`{key}`", "group of keys", "", told[each.name]
            yield from _keys(typing.cast("type[Any]", hint), key, defaults.get(each.name, {}), told_at)
            continue
        default = defaults.get(each.name, "needed")
        shown = default if default == "needed" else f"`{_value(default)}`"
        yield f"`{key}`", _type(hint), shown, told[each.name]


def _defaults(group: str) -> Mapping[str, Any]:
    if group not in OWN_DEFAULTS and group in _composed():
        return typing.cast("Mapping[str, Any]", _composed()[group])
    values: dict[str, Any] = {}
    for each in dataclasses.fields(groups()[group]):
        if each.default is not dataclasses.MISSING:
            values[each.name] = each.default
        elif each.default_factory is not dataclasses.MISSING:
            value = each.default_factory()
            values[each.name] = (
                dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value
            )
    return values


@cache
def _composed() -> dict[str, Any]:
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = OmegaConf.to_container(compose("config", ["+replay=default"]), resolve=False)
    config["pipeline"]["stages"] = {}  # a table of its own
    return typing.cast("dict[str, Any]", config)


def _value(value: object) -> str:
    """A value as one types it in an override."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, list):
        return f"[{','.join(_value(item) for item in value)}]"
    return "{}" if value == {} else str(value)


NAMES = {int: "whole number", float: "number", str: "text", bool: "true or false", type(None): "null", Any: "any"}


def _type(hint: Any) -> str:
    if hint in NAMES:
        return NAMES[hint]
    arguments = typing.get_args(hint)
    if isinstance(hint, types.UnionType):
        return " or ".join(_type(each) for each in arguments)
    if typing.get_origin(hint) is list:
        return "list of tensors" if arguments[0] is TensorSpec else f"list of {_plural(arguments[0])}"
    if typing.get_origin(hint) is dict:
        return "mapping"
    raise ValueError(f"{hint} has no name for people yet: give it one in {Path(__file__).name}.")


def _plural(hint: Any) -> str:
    return {int: "whole numbers", str: "texts", Any: "pairs"}[hint]


def _choices(group: str) -> tuple[Row, list[Row]]:
    files = sorted((CONF / group).glob("*.yaml"))
    return ("choice", "what it is"), [(f"`{group}={file.stem}`", _first_comment(file)) for file in files]


def _first_comment(file: Path) -> str:
    lines = file.read_text(encoding="utf-8").splitlines()
    if lines[0].startswith("# @package"):
        del lines[0]
    comment = []
    for line in lines:
        if not line.startswith("#"):
            break
        comment.append(line.lstrip("# "))
    text = " ".join(comment)
    start = re.match(r"moesaic run experiment=\w+: ", text)  # the row says that already
    return text[start.end() :].strip() if start else text


def _models(_: str) -> tuple[Row, list[Row]]:
    head = ("choice", "MoE layers", "experts", "groups", "top-k", "first MoE layer", "MB an expert")
    rows = []
    for file in sorted((CONF / "model").glob("*.yaml")):
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
        del values["defaults"]
        model = ModelSpec(**{**values, "tensors": [TensorSpec(**tensor) for tensor in values["tensors"]]})
        sizes = (model.layers, model.experts, model.num_groups, model.top_k, model.first_moe_layer)
        size = f"{model.expert_bytes / 1e6:.3g}" + (f" (scale={model.scale:g})" if model.scale != 1 else "")
        rows.append((f"`model={file.stem}`", *("from the loads" if n is None else str(n) for n in sizes), size))
    return head, rows


def _stages(_: str) -> tuple[Row, list[Row]]:
    """The first sentence of each stage's module, and what goes in and out."""
    from pipeline.declaration import read_declaration

    value = yaml.safe_load((CONF / "pipeline" / "default.yaml").read_text(encoding="utf-8"))["stages"]
    rows = []
    for spec in read_declaration({name: StageDeclaration(**each) for name, each in value.items()}):
        module = inspect.getmodule(spec.function())
        question = (inspect.getdoc(module) or "").splitlines()[0].partition(": ")[2].rstrip(".")
        takes = ", ".join(f"`{stage}/{file}`" for stage, file in spec.inputs.values()) or "what `collect` names"
        makes = ", ".join(f"`{file}`" for file in spec.outputs)
        rows.append((f"[{spec.name}](stages/{spec.name}.md)", question, takes, makes))
    return ("stage", "question", "takes", "makes"), rows


def _commands(_: str) -> tuple[Row, list[Row]]:
    """A row for each command, and for each of its arguments."""
    commands = next(a for a in _parser()._actions if isinstance(a, argparse._SubParsersAction))
    told = {choice.dest: choice.help or "" for choice in commands._choices_actions}
    rows: list[Row] = []
    for name, parser in commands.choices.items():
        rows.append((f"**`moesaic {name}`**", "", told[name]))
        for action in parser._actions:
            if isinstance(action, argparse._HelpAction):
                continue
            value = "" if action.nargs == 0 else action.metavar or action.dest.upper()
            if action.choices is not None:
                value = "|".join(map(str, action.choices))
            words = f"{', '.join(action.option_strings)} {value}".strip()
            needed = " (needed)" if action.required and action.option_strings else ""
            default = (
                ""
                if action.default in (None, False) or "default" in (action.help or "")
                else f"default: {action.default}"
            )
            rows.append(("", f"`{words}`", f"{action.help or default}{needed}"))
    return ("command", "argument", "what it is"), rows


KINDS: dict[str, Callable[[str], tuple[Row, list[Row]]]] = {
    "config": _config,
    "choices": _choices,
    "models": _models,
    "stages": _stages,
    "commands": _commands,
}

if __name__ == "__main__":
    for page in PAGES:
        before = page.read_text(encoding="utf-8")
        try:
            after = written(before)
        except ValueError as error:
            sys.exit(f"{page.relative_to(ROOT)}: {error}")
        if after != before:
            page.write_text(after, encoding="utf-8")
            print(f"Written: {page.relative_to(ROOT)}")
    for table in sorted(missing()):
        print(f"No page has the table of {table}: where it shall be, write <!-- table: {table} --> and <!-- end -->.")
