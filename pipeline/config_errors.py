"""One sentence for what Hydra or OmegaConf find wrong with a config."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from hydra.errors import ConfigCompositionException, MissingConfigException, OverrideParseException
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException
from yaml import YAMLError

from pipeline.schema import sentence
from stages.errors import BadInput

PLUGINS = ("hydra/launcher", "hydra/sweeper")
EXTRAS = ("joblib", "submitit", "ray", "optuna")


WITH_VALUE = {
    "--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd", "--info",
    "-i", "--experimental-rerun",
}  # fmt: skip


def flags_first(arguments: list[str]) -> list[str]:
    """Hydra's command line with its flags before the overrides: it takes no flag between two of them. Raises `BadInput`
    for an override without a key."""
    flags, overrides = [], []
    rest = iter(arguments)
    for word in rest:
        if word.startswith("="):
            raise BadInput(f"{word} is no override: write key=value, as in seed=1.")
        if not word.startswith("-"):
            overrides.append(word)
            continue
        flags.append(word)
        if word in WITH_VALUE and (value := next(rest, None)) is not None:
            flags.append(value)
    return [*flags, *overrides]


def yaml_sentence(error: YAMLError) -> str:
    """Where a config file is no YAML, and why."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or str(error)
    place = f"{mark.name}, line {mark.line + 1}" if mark else "A config file"
    return f"{place} is no YAML: {problem}."


def config_sentence(error: Exception) -> str:
    """One sentence for what Hydra or OmegaConf found wrong with the config."""
    if isinstance(error, OverrideParseException):
        return (
            f"{error.override} cannot be read as an override: write key=value (seed=1), group=choice (model=tiny), "
            "+key=value or ~key, and quote values with spaces, commas or brackets."
        )
    if ambiguous := re.match(r"Ambiguous value for argument '([^=]+)=(.*)'", str(error)):
        key, values = ambiguous.groups()
        return f"{key}={values} names several values: give -m to sweep over them, or {key}=[{values}] for a list."
    if isinstance(error, MissingConfigException):
        return _missing(error)
    if isinstance(error, OmegaConfBaseException):
        return sentence(error)
    cause: Any = error.__cause__
    if isinstance(error, ConfigCompositionException) and isinstance(cause, OmegaConfBaseException):
        if isinstance(cause, ConfigAttributeError | ConfigKeyError) and not dataclasses.is_dataclass(cause.object_type):
            return (
                f"{cause.full_key or cause.key} is not a known key; `moesaic run --cfg job` prints all that there are."
            )
        return sentence(cause)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]) if lines else type(error).__name__


def _missing(error: MissingConfigException) -> str:
    """`place=foo is not known; allowed are …` from Hydra's several lines."""
    group, _, name = (error.missing_cfg_file or "").rpartition("/")
    options = [option for option in error.options or [] if option != "schema"]
    if group in PLUGINS and name.partition("_")[0] in EXTRAS:
        extra = name.partition("_")[0]
        return f"{group}={name} is not installed: pip install 'moesaic[{extra}]' brings it."
    if group and options:
        return f"{group}={name} is not known; allowed are {', '.join(sorted(options))}."
    return " ".join(str(error).split())
