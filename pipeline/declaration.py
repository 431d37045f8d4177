"""The declared pipeline: `conf/pipeline/*.yaml` read into stage specs, and the part of it that a run asks for."""

from __future__ import annotations

import importlib
import inspect
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stages.contract import StageFunction
from stages.errors import BadInput


@dataclass
class StageDeclaration:
    """One stage.

    target:      dotted path of the stage function
    config:      the config groups it is given
    inputs:      name -> stage/file, an output of an earlier stage
    outputs:     files that other stages may take
    followers:   a module for ranks that another launcher started; it has `is_attached`, `is_leader`, `follow` and
                 `release`
    calibration: a module that measures what predictions need of this machine; it has `calibrate`
    rederive:    a function of `stages.rederived` that audits call
    """

    target: str
    config: list[str] = field(default_factory=list)
    inputs: dict[str, str] = field(default_factory=dict)
    outputs: list[str] = field(default_factory=list)
    followers: str | None = None
    calibration: str | None = None
    rederive: str | None = None


@dataclass
class PipelineOptions:
    """What there is to run; `pipeline.schema` checks the fields of each stage.

    stages: name -> declaration of a stage, in the order in which they run
    """

    stages: dict[str, Any] = field(default_factory=dict)


@dataclass
class RunOptions:
    """Which stages run.

    first:   the first stage to run; those before it are taken from their checkpoints
    last:    the last stage to run
    only:    first and last at once
    force:   stages that run even if there is a checkpoint, like [place,plan]
    dry_run: says which stages would run and why, and runs none
    """

    first: str | None = None
    last: str | None = None
    only: str | None = None
    force: list[str] = field(default_factory=list)
    dry_run: bool = False


@dataclass
class SweepOptions:
    """How a sweep goes on, and what a sweeper that searches is told.

    resume:     auto continues the last sweep of the same command in the same folder if it was interrupted, never begins
                anew, the id of a sweep's run continues that one, also if it had ended
    objectives: metrics (stage.name) that a sweeper which searches, like Optuna, looks at
    """

    resume: str = "auto"
    objectives: list[str] = field(default_factory=lambda: ["place.balancedness"])


@dataclass(frozen=True)
class StageSpec:
    """A declared stage, in the order of the pipeline. `inputs`: name -> (stage, file)."""

    name: str
    target: str
    groups: tuple[str, ...]
    inputs: Mapping[str, tuple[str, str]]
    outputs: tuple[str, ...]
    followers: str | None
    calibration: str | None
    rederive: str | None

    def function(self) -> StageFunction:
        module, _, name = self.target.rpartition(".")
        try:
            return typing.cast("StageFunction", getattr(importlib.import_module(module), name))
        except (ImportError, AttributeError, ValueError) as error:
            raise BadInput(f"pipeline.stages.{self.name}.target={self.target} cannot be imported: {error}.") from error

    def config_type(self) -> type[Any]:
        """The dataclass that the stage function's `config` parameter is annotated with."""
        function = self.function()
        hints = typing.get_type_hints(function)
        if "config" not in hints or "config" not in inspect.signature(function).parameters:
            raise BadInput(
                f"pipeline.stages.{self.name}.target={self.target} has no parameter `config` with a dataclass type."
            )
        return typing.cast("type[Any]", hints["config"])


def read_declaration(stages: Mapping[str, StageDeclaration]) -> list[StageSpec]:
    """The specs in order; every input must be a declared output of an earlier stage."""
    specs: list[StageSpec] = []
    offered: set[tuple[str, str]] = set()
    for name, stage in stages.items():
        inputs: dict[str, tuple[str, str]] = {}
        for key, reference in stage.inputs.items():
            origin, _, file = reference.partition("/")
            if (origin, file) not in offered:
                known = ", ".join(sorted(f"{s}/{f}" for s, f in offered)) or "none"
                raise BadInput(
                    f"pipeline.stages.{name}.inputs.{key}={reference} is no output of an earlier stage; "
                    f"there are {known}."
                )
            inputs[key] = (origin, file)
        offered.update((name, file) for file in stage.outputs)
        specs.append(
            StageSpec(
                name,
                stage.target,
                tuple(stage.config),
                inputs,
                tuple(stage.outputs),
                stage.followers,
                stage.calibration,
                stage.rederive,
            )
        )
    if not specs:
        raise BadInput("pipeline.stages is empty: there is nothing to run.")
    return specs


def selection(specs: list[StageSpec], run: RunOptions) -> tuple[int, int]:
    """The first and the last index to run, both inclusive."""
    names = [spec.name for spec in specs]

    def index(key: str, value: str) -> int:
        if value not in names:
            raise BadInput(f"run.{key}={value} is no stage; the stages are {', '.join(names)}.")
        return names.index(value)

    for stage in run.force:
        index("force", stage)
    if run.only is not None:
        if run.first is not None or run.last is not None:
            raise BadInput("run.only cannot be combined with run.first or run.last.")
        return index("only", run.only), index("only", run.only)
    first = index("first", run.first) if run.first is not None else 0
    last = index("last", run.last) if run.last is not None else len(names) - 1
    if first > last:
        raise BadInput(f"run.first={run.first} comes after run.last={run.last}.")
    return first, last


def needed(specs: list[StageSpec], first: int, last: int) -> set[str]:
    """Names of stages before `first` whose outputs the stages from `first` to `last` take, directly or not."""
    wanted: set[str] = set()
    for spec in reversed(specs[: last + 1]):
        if specs.index(spec) >= first or spec.name in wanted:
            wanted.update(stage for stage, _ in spec.inputs.values())
    return {spec.name for spec in specs[:first]} & wanted
