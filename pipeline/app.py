"""`moesaic run`: composes the config with Hydra, runs the pipeline once or as a sweep, and turns what happened into an
exit code and one last sentence."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline import attached, sweep
from pipeline.config_errors import config_sentence
from pipeline.lifecycle import Terminated
from pipeline.progress import json_lines
from pipeline.progress.view import log_asked, open_view, view_without_run
from pipeline.runner import Request, run_pipeline
from pipeline.schema import CONF, log_of, register
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

    code, cause = 1, ""
    before = sys.argv
    sys.argv = ["moesaic run", *arguments]
    try:
        register()
        followed = attached.follow(arguments)
        if followed is not None:
            return followed
        hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(task)()
        code = max((getattr(error, "exit_code", 1) for error in failures), default=0)
        if failures:
            cause = f"{len(failures)} of the sweep's runs failed, the last with: {sentence_of(failures[-1])}"
        if ended := sweep.close("FAILED" if failures else "FINISHED", cause):
            view_without_run(arguments).comparison(*ended)
    except (HydraException, OmegaConfBaseException, BadInput) as error:
        code, cause = BadInput.exit_code, config_sentence(error)
    except MoesaicError as error:
        code, cause = error.exit_code, sentence_of(error)
    except Terminated as error:
        cause = str(error)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except (KeyboardInterrupt, OSError) as error:
        cause = sentence_of(error)
    except Exception as error:  # a bug, or a library's: where it happened, then what
        traceback.print_exc()
        cause = sentence_of(error)
    finally:
        sys.argv = before
        sweep.close("KILLED", "The sweep was ended before its last point.")
        attached.release(code)
    if cause:
        _last_line(cause)
        if log_asked(arguments) == "json":
            json_lines.end(code, cause)
    return code


def _run_once(config: DictConfig) -> None:
    runtime = HydraConfig.get()
    directory = Path(runtime.runtime.output_dir)
    swept = str(Path(runtime.sweep.dir).absolute()) if runtime.mode == RunMode.MULTIRUN else None
    overrides = list(OmegaConf.to_container(runtime.overrides.task) or [])
    try:
        with open_view(log_of(config), None) as view:
            if swept:
                view.point(runtime.job.num, overrides)
            parent = sweep.parent_of(swept) if swept else None
            summary = run_pipeline(Request(config, directory, overrides, view, swept, parent))
    except MoesaicError as error:
        view.failure(directory, sentence_of(error))
        raise
    view.result(summary, directory)


def _last_line(text: str) -> None:
    sys.stdout.flush()
    sys.stderr.write(" ".join(text.split()) + "\n")
    sys.stderr.flush()
