"""Runs whose ranks another launcher started (torchrun, Slurm): rank 0 drives the pipeline, the others follow."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from types import ModuleType

from stages.errors import MoesaicError

RANK_VARIABLES = ("RANK", "SLURM_PROCID")


def follow(arguments: list[str]) -> int | None:
    """On a rank that follows: take part in the stages that have followers, and return the exit code. Else None."""
    if not any(variable in os.environ for variable in RANK_VARIABLES):
        return None
    from hydra import compose, initialize_config_dir

    from pipeline.schema import CONF, check, stage_config

    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", overrides_of(arguments))
    _, specs = check(config)
    for spec in specs:
        if spec.followers is None:
            continue
        module = _module(spec.followers)
        stage = stage_config(config, spec)
        if not module.is_attached():
            continue
        if not module.is_leader():
            return int(module.follow(stage))
        module.lead()
        _LEADING.append(module)
    return None


def overrides_of(arguments: list[str]) -> list[str]:
    """What of a command line is an override, with `--config-dir` as one."""
    overrides, folders = [], []
    rest = iter(arguments)
    for argument in rest:
        name, _, value = argument.partition("=")
        if name in ("--config-dir", "-cd"):
            folders.append(Path(value or next(rest, "")).absolute())
        elif not argument.startswith("--") and ("=" in argument or argument.startswith(("~", "+"))):
            overrides.append(argument)
    if folders:
        overrides.append(f"hydra.searchpath=[{','.join(f'file://{folder}' for folder in folders)}]")
    return overrides


def release(exit_code: int) -> None:
    """On the rank that drives: let the followers go, with the exit code of the pipeline."""
    while _LEADING:
        _LEADING.pop().release(exit_code)


_LEADING: list[ModuleType] = []


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MoesaicError(f"The followers module {name} cannot be imported: {error}.") from error
