"""`moesaic run`: composes the config with Hydra, runs the pipeline once or as a sweep, and turns what happened into an
exit code and one last sentence."""

from __future__ import annotations

import dataclasses
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from pipeline import attached, sweep, table
from pipeline.credentials import refuse_in
from pipeline.lifecycle import Terminated
from pipeline.runner import Request, run_pipeline
from pipeline.schema import CONF, register, sentence
from stages.errors import BadInput, MoesaicError, sentence_of


def run(arguments: list[str]) -> int:
    """Run with Hydra's command line `arguments` (overrides and flags). The exit code."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then lets errors through, and the last line can be one sentence
    failures: list[Exception] = []

    def task(config: DictConfig) -> None:
        swept = HydraConfig.get().mode == RunMode.MULTIRUN
        try:
            _run_once(config)
        except Exception as error:
            if not swept:
                raise
            # A point of a sweep that cannot be is recorded with its reason; the others still run.
            sys.stderr.write(f"{sentence_of(error)}\n")
            failures.append(error)

    code = 1
    before = sys.argv
    sys.argv = ["moesaic run", *arguments]
    try:
        refuse_in(arguments)  # before Hydra writes them down
        register()
        followed = attached.follow(arguments)
        if followed is not None:
            return followed
        hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(task)()
        code = max((getattr(error, "exit_code", 1) for error in failures), default=0)
        cause = (
            f"{len(failures)} of the sweep's runs failed, the last with: {sentence_of(failures[-1])}"
            if failures
            else ""
        )
        if ended := sweep.close("FAILED" if failures else "FINISHED", cause):
            table.comparison(*ended)
        if failures:
            _last_line(cause)
    except (HydraException, OmegaConfBaseException, BadInput) as error:
        code = BadInput.exit_code
        _last_line(config_sentence(error))
    except MoesaicError as error:
        code = error.exit_code
        _last_line(str(error))
    except KeyboardInterrupt as error:
        _last_line(sentence_of(error))
    except Terminated as error:
        _last_line(str(error))
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except OSError as error:
        _last_line(sentence_of(error))
    except Exception as error:  # a bug, or a library's: where it happened, then what
        traceback.print_exc()
        _last_line(sentence_of(error))
    finally:
        sys.argv = before
        sweep.close("KILLED", "The sweep was ended before its last point.")
        attached.release(code)
    return code


def _run_once(config: DictConfig) -> None:
    runtime = HydraConfig.get()
    directory = Path(runtime.runtime.output_dir)
    swept = str(Path(runtime.sweep.dir).absolute()) if runtime.mode == RunMode.MULTIRUN else None
    overrides = list(OmegaConf.to_container(runtime.overrides.task) or [])
    if swept:
        table.say(f"\n{runtime.job.num}: {' '.join(overrides)}")
    with table.progress() as progress:
        parent = sweep.parent_of(swept) if swept else None
        known = sweep.experiment_of(swept) if swept else None
        request = Request(config, directory, overrides, table.say, progress, swept, parent, known)
        try:
            summary = run_pipeline(request)
        except MoesaicError:
            table.failure(directory)
            raise
    table.result(summary, directory)


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
    if group and options:
        return f"{group}={name} is not known; allowed are {', '.join(sorted(options))}."
    return " ".join(str(error).split())


def _last_line(text: str) -> None:
    sys.stdout.flush()
    sys.stderr.write(" ".join(text.split()) + "\n")
    sys.stderr.flush()
