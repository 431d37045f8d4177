"""One sentence for what Hydra or OmegaConf find wrong with a config."""

from __future__ import annotations

import dataclasses
from typing import Any

from hydra.errors import ConfigCompositionException, MissingConfigException
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from pipeline.schema import sentence

PLUGINS = ("hydra/launcher", "hydra/sweeper")
EXTRAS = ("joblib", "submitit", "ray", "optuna")


def config_sentence(error: Exception) -> str:
    """One sentence for what Hydra or OmegaConf found wrong with the config."""
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
