"""`moesaic run`: composes the config with Hydra, runs the pipeline once or as a sweep, and turns what happened into an
exit code and one last sentence."""

from __future__ import annotations

import os
import sys
import traceback
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from pipeline import attached, sweep
from pipeline.composing import composed_once
from pipeline.config_errors import config_sentence, flags_first, yaml_sentence
from pipeline.credentials import refuse_in
from pipeline.garbage import seldom_collected
from pipeline.lifecycle import Terminated, cause_of, ended_by, ending_raises
from pipeline.points import Point
from pipeline.progress import json_lines
from pipeline.progress.view import Lines, View, log_asked, open_view, view_without_run
from pipeline.runner import Request, run_pipeline
from pipeline.schema import CONF, log_of, register, sweep_options
from pipeline.summary import Summary
from pipeline.worker import at_work
from stages.errors import BadInput, MoesaicError, sentence_of

NO_TRIAL = "No trials are completed"
"""What Optuna says where every point failed."""
BASIC_SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"


def run(arguments: list[str]) -> int:
    """Run with Hydra's command line `arguments` (overrides and flags). The exit code."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then lets errors through, and the last line can be one sentence
    code, cause = 1, ""
    before = sys.argv
    failures.clear()
    sweep.launching()
    try:
        refuse_in(arguments)  # before Hydra writes them down
        sys.argv = ["moesaic run", *flags_first(arguments)]
        register()
        followed = attached.follow(arguments)
        if followed is not None:
            return followed
        with ending_raises(), composed_once(), seldom_collected():
            hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(point)()
        if _alone:
            raise _alone.pop()
        worst = max((getattr(error, "exit_code", 1) for error in failures), default=0)
        if ended := sweep.close():  # which has not seen how points ended that could not tell it the store
            worst, cause = max(worst, ended.exit_code), ended.cause or (sentence_of(failures[-1]) if failures else "")
            view_without_run(arguments).comparison(ended.comparison, ended.run_id, ended.directory)
        elif failures:  # of a sweep that was not to run
            cause = f"{len(failures)} of the sweep's points cannot run, the last for: {sentence_of(failures[-1])}"
        code = worst
    except (HydraException, OmegaConfBaseException, BadInput) as error:
        code, cause = BadInput.exit_code, config_sentence(error)
        if end := ended_by(error):
            code, cause = 1, cause_of(end)
    except MoesaicError as error:
        code, cause = error.exit_code, sentence_of(error)
    except sweep.Refused as refused:
        code, cause = refused.error.exit_code, sentence_of(refused.error)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except YAMLError as error:
        code, cause = BadInput.exit_code, yaml_sentence(error)
    except (KeyboardInterrupt, Terminated, OSError, MemoryError) as error:
        cause = cause_of(error)
    except Exception as error:
        if end := ended_by(error):
            cause = cause_of(end)
        elif failures and NO_TRIAL in str(error):  # why is known better
            sweep.close()
            code, cause = getattr(failures[-1], "exit_code", 1), sentence_of(failures[-1])
        else:  # a bug, or a library's: where it happened, then what
            traceback.print_exc()
            cause = sentence_of(error)
    finally:
        sys.argv = before
        sweep.close("The sweep was ended before its last point: the same command continues it.")
        attached.release(code)
    if cause:
        _last_line(cause)
        if log_asked(arguments) == "json":
            with suppress(OSError):  # nobody reads it
                json_lines.end(code, cause)
    return code


failures: list[Exception] = []
"""Of the points that ran in this process."""
_alone: list[Exception] = []
"""Of a run that is no point: raised again where Hydra does not add to it."""


def point(config: DictConfig) -> Any:
    """A run, or a point of a sweep in whatever process. What it came to, for a sweeper that wants to know.

    A point that cannot be is recorded with its reason; the others still run.
    """
    runtime = HydraConfig.get()
    swept = runtime.mode == RunMode.MULTIRUN
    os.environ["HYDRA_FULL_ERROR"] = "1"
    if Path.cwd() != Path(runtime.runtime.cwd):  # where another process's paths begin
        os.chdir(runtime.runtime.cwd)
    try:
        with at_work() if swept and not sweep.launches() else nullcontext():
            summary = _run(config, Point.of(Path(runtime.sweep.dir), runtime.job.num) if swept else None)
    except Exception as error:
        (failures if swept else _alone).append(error)
        return None
    searches = swept and runtime.sweeper.get("_target_") != BASIC_SWEEPER
    if not searches:
        return None
    try:
        return objectives(summary, sweep_options(config).objectives)
    except BadInput as error:
        failures.append(error)
        return None


def _run(config: DictConfig, swept: Point | None) -> Summary:
    runtime = HydraConfig.get()
    directory = Path(runtime.runtime.output_dir)
    overrides = list(OmegaConf.to_container(runtime.overrides.task) or [])
    view: View = Lines(print)
    try:
        with open_view(log_of(config), swept.number if swept and not sweep.launches() else None) as view:
            if swept:
                view.point(swept.number, overrides)
            summary = run_pipeline(Request(config, directory, overrides, view, swept))
    except Exception as error:
        view.failure(directory, sentence_of(error))
        raise
    view.result(summary, directory)
    return summary


def objectives(summary: Summary, names: list[str]) -> float | list[float]:
    """What the sweeper is told. Raises `BadInput` where a metric is not there."""
    metrics = {f"{stage}.{name}": v for stage, state in summary.stages.items() for name, v in state.metrics.items()}
    if missing := [name for name in names if name not in metrics]:
        raise BadInput(f"sweep.objectives: the run has no {missing[0]}; it has {', '.join(metrics) or 'nothing'}.")
    values = [metrics[name] for name in names]
    return values[0] if len(values) == 1 else values


def _last_line(text: str) -> None:
    with suppress(OSError):  # nobody reads it, or its disk is full
        sys.stdout.flush()
    sys.stderr.write(" ".join(text.split()) + "\n")
    sys.stderr.flush()
