"""The config schema: dataclasses registered with Hydra, and a second look at the composed config.

Hydra checks types while composing, but lets `+group.unknown=1` pass: so every group is merged once more into its
dataclass, which also runs the dataclass's own checks.
"""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import conf
from pipeline.addresses import KINDS
from pipeline.credentials import refuse_in
from pipeline.declaration import (
    PipelineOptions,
    RunOptions,
    StageDeclaration,
    StageSpec,
    SweepOptions,
    read_declaration,
)
from pipeline.progress.view import LOGS
from stages.errors import BadInput

CONF = Path(conf.__file__).parent


@dataclass
class TrackingOptions:
    """Where runs are recorded. Neither `uri` nor `artifact_location` may hold a password.

    kind:              what the address must be of: any, sqlite, server or postgres
    uri:               the store, without a password; null takes MLFLOW_TRACKING_URI if it is of that kind, or where one
        of the kind is by default (any: outputs/mlflow.db in the current folder)
    experiment:        the MLflow experiment of the runs
    artifact_location: where artifacts go; null puts them beside a local database, into outputs/mlartifacts for
        PostgreSQL, and leaves the choice to a server
    heartbeat_seconds: how often a run says that it is alive; one that has not for long is marked as orphan by a later start
    """

    kind: str = "any"
    uri: str | None = None
    experiment: str = "moesaic"
    artifact_location: str | None = None
    heartbeat_seconds: float = 15.0

    def __post_init__(self) -> None:
        if not self.heartbeat_seconds > 0:
            raise BadInput(f"tracking.heartbeat_seconds={self.heartbeat_seconds} must be above 0.")
        if not self.experiment.strip():
            raise BadInput("tracking.experiment must not be empty.")
        refuse_in(f"tracking.{name}={value}" for name in ("uri", "artifact_location") if (value := getattr(self, name)))
        if self.kind not in KINDS:
            raise BadInput(f"tracking.kind={self.kind} is not known; allowed are {', '.join(KINDS)}.")
        if self.uri and not KINDS[self.kind].takes(self.uri):
            raise BadInput(
                f"tracking.uri={self.uri} is no address of tracking.kind={self.kind}: {KINDS[self.kind].what}."
            )


@dataclass
class Root:
    """What every config has besides the groups of its stages."""

    pipeline: PipelineOptions = field(default_factory=PipelineOptions)
    tracking: TrackingOptions = field(default_factory=TrackingOptions)
    run: RunOptions = field(default_factory=RunOptions)
    sweep: SweepOptions = field(default_factory=SweepOptions)


ROOT_GROUPS: dict[str, type[Any]] = {
    "pipeline": PipelineOptions, "tracking": TrackingOptions, "run": RunOptions,
    "sweep": SweepOptions,
}  # fmt: skip


def register() -> None:
    """Store `<group>/schema` for every config group that a shipped pipeline gives to a stage."""
    store = ConfigStore.instance()
    for group, kind in {**ROOT_GROUPS, **_stage_groups()}.items():
        store.store(group=group, name="schema", node=kind)


def _stage_groups() -> dict[str, type[Any]]:
    groups: dict[str, type[Any]] = {}
    for file in sorted((CONF / "pipeline").glob("*.yaml")):
        stages = yaml.safe_load(file.read_text(encoding="utf-8")).get("stages", {})
        declared = {name: StageDeclaration(**value) for name, value in stages.items()}
        for spec in read_declaration(declared):
            hints = typing.get_type_hints(spec.config_type())
            groups |= {
                name: hint for name, hint in hints.items() if isinstance(hint, type) and dataclasses.is_dataclass(hint)
            }
    return groups


def check(config: DictConfig) -> tuple[Root, list[StageSpec]]:
    """The checked root of a composed config and its stages. Raises `BadInput` with the full key of what is wrong."""
    root = Root(**{name: _typed(kind, config.get(name), name) for name, kind in ROOT_GROUPS.items()})
    stages = root.pipeline.stages
    specs = read_declaration({n: _typed(StageDeclaration, v, f"pipeline.stages.{n}") for n, v in stages.items()})
    known = {*ROOT_GROUPS, *(group for spec in specs for group in spec.groups)}
    shipped = {file.parent.name for file in CONF.glob("*/*.yaml")} | {"seed", "log"}
    for name in map(str, config):
        if name not in known | shipped:
            raise BadInput(f"{name} is not a known key; allowed are {', '.join(sorted(known | shipped))}.")
    log_of(config)
    return root, specs


def log_of(config: DictConfig) -> str:
    """How the run tells what it does."""
    log = config.get("log", "auto")
    if log not in LOGS:
        raise BadInput(f"log={log} is not known; allowed are {', '.join(LOGS)}.")
    return str(log)


def sweep_options(config: DictConfig) -> SweepOptions:
    options = _typed(SweepOptions, config.get("sweep"), "sweep")
    assert isinstance(options, SweepOptions)
    return options


def tracking_options(config: DictConfig) -> TrackingOptions:
    options = _typed(TrackingOptions, config.get("tracking"), "tracking")
    assert isinstance(options, TrackingOptions)
    return options


def stage_config(config: DictConfig, spec: StageSpec) -> Any:
    """The config object of one stage: its groups, merged into the dataclass it declares."""
    missing = [group for group in spec.groups if group not in config]
    if missing:
        raise BadInput(f"pipeline.stages.{spec.name}.config names {missing[0]}, which the config does not have.")
    return _typed(spec.config_type(), resolved(config, spec.groups), "")


def resolved(config: DictConfig, groups: Iterable[str]) -> dict[str, Any]:
    """Some groups of the whole config, with what they take from other groups filled in."""
    try:
        values = {group: config[group] for group in groups}
        return {
            group: OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
            for group, value in values.items()
        }
    except OmegaConfBaseException as error:
        raise BadInput(sentence(error)) from error


def _typed(kind: type[Any], value: Any, prefix: str) -> Any:
    plain = OmegaConf.create({} if value is None else value)
    try:
        # As a plain container: a typed node would bring along the keys that `+` added to it.
        container = OmegaConf.to_container(plain, resolve=True)
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), container))
    except OmegaConfBaseException as error:
        raise BadInput(sentence(error, prefix)) from error


EXPECTED = {
    "Integer": "a whole number", "Float": "a number", "Boolean": "true or false", "String": "a text",
}  # fmt: skip


def sentence(error: OmegaConfBaseException, prefix: str = "") -> str:
    """One sentence for what OmegaConf found wrong: the full key, the value, and what is allowed."""
    key = ".".join(filter(None, [prefix, error.full_key or ""]))
    text: str = str(error.msg or error).split("\n")[0]
    for kind, words in EXPECTED.items():
        if text.endswith(f"could not be converted to {kind}"):
            value: str = text.split("'")[1]
            return f"{key}={value} is wrong: {words} is expected."
    if no_bool := re.match(r"Value '(.*)' is not a valid bool", text):
        return f"{key}={no_bool[1]} is wrong: true or false is expected."
    if "is not a ListConfig" in text:
        return f"{key} is wrong: a list is expected, like [first,second]."
    if "not in" in text and dataclasses.is_dataclass(error.object_type):
        allowed = ", ".join(f.name for f in dataclasses.fields(error.object_type))
        return f"{key} is not a known key; allowed are {allowed}."
    return f"{key}: {text}" if key and key not in text else text
