"""A sweep's parent run: made before its first point, or taken up again where the same sweep was interrupted; told to
its points by a file in the sweep's folder, and closed with a comparison of them, however the sweep ends."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from pipeline import comparison, record, sync, table
from pipeline.compared import leave_comparison
from pipeline.credentials import hidden
from pipeline.lifecycle import birth_tags, heartbeat, signals_held
from pipeline.orphans import reap_orphans
from pipeline.outbox import suppress_outage
from pipeline.points import forget_locks, write_parent
from pipeline.progress.sweep_view import Watched, watching
from pipeline.progress.view import announce
from pipeline.resume import Earlier, find_earlier, sweep_key
from pipeline.schema import log_of, sweep_options, tracking_options
from pipeline.seal import SealedStore
from pipeline.store import open_store
from pipeline.summary import read_summary
from stages import paths
from stages.errors import BadInput, MoesaicError

BASIC = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
RAY = "hydra_ray_launcher"
URI = "MLFLOW_TRACKING_URI"


class Refused(BaseException):
    """The sweep cannot begin, for the reason `error`. Not an Exception: Hydra makes warnings of those in callbacks."""

    def __init__(self, error: MoesaicError) -> None:
        super().__init__(str(error))
        self.error = error


class ParentRun(Callback):
    """Called by Hydra, in the process that launches the points, before it does."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        try:
            log_of(config)
            _check_objectives(config)
            if not _OPEN and not config.run.dry_run:
                _OPEN.append(Sweep.begin(config))
        except MoesaicError as error:
            _refuse(error)


def _check_objectives(config: DictConfig) -> None:
    """A sweeper that searches takes points for failed that do not tell it as many numbers as it has directions."""
    direction = config.hydra.sweeper.get("direction")
    names = sweep_options(config).objectives
    directions = list(direction) if OmegaConf.is_list(direction) else [direction]
    if direction is not None and len(directions) != len(names):
        raise BadInput(
            f"sweep.objectives has {len(names)} metrics and hydra.sweeper.direction {len(directions)}: give as many of "
            "each, like sweep.objectives=[place.balancedness] hydra.sweeper.direction=maximize."
        )


def _refuse(error: MoesaicError) -> NoReturn:
    raise Refused(error) from error


_OPEN: list[Sweep] = []
_LAUNCHING: list[int] = []


def launching() -> None:
    """Say that this process, and no one that comes of it, launches what is swept."""
    _LAUNCHING[:] = [os.getpid()]


def launches() -> bool:
    """Is this the process that launches the points?"""
    return os.getpid() in _LAUNCHING


@dataclass(frozen=True)
class Ended:
    """What became of a sweep: of all of its points, and of its run."""

    comparison: comparison.Comparison
    run_id: str
    directory: Path
    exit_code: int
    cause: str


def close(cut_short: str = "") -> Ended | None:
    """Finish the sweep that this process launched, if it did and still has to; `cut_short`: why before its last point."""
    return _OPEN.pop().close(cut_short) if _OPEN else None


@dataclass
class Sweep:
    store: SealedStore
    run_id: str
    directory: Path
    tell: Callable[[str], None] = table.say
    ends: ExitStack = field(default_factory=ExitStack)

    @classmethod
    def begin(cls, config: DictConfig) -> Sweep:
        options = tracking_options(config)
        store = open_store(options, kind=SealedStore)
        reap_orphans(store)
        key, tell = sweep_key(config), _teller(log_of(config))
        earlier = find_earlier(store, config, key, sweep_options(config).resume)
        directory = earlier.directory if earlier else Path(config.hydra.sweep.dir).absolute()
        _prepare(config, directory)
        tags = {"directory": str(directory), **birth_tags(options.heartbeat_seconds)}
        if earlier is None:
            overrides = [str(override) for override in config.hydra.overrides.task]
            run_id = record.start_sweep(store, overrides, {"kind": "sweep", "sweep_key": key, **tags})
        else:
            run_id = _take_up(store, earlier, tags)
            announce(
                log_of(config),
                f"Continues the sweep {run_id[:8]} in {directory}: of its points {earlier.done} are done.",
                {"event": "sweep", "run_id": run_id, "directory": str(directory), "done": earlier.done},
            )
        write_parent(directory, run_id, store.experiment_id, continues=earlier is not None)
        sweep = cls(store.kept_in(directory, tell), run_id, directory, tell)
        sweep.ends.enter_context(heartbeat(store, run_id, options.heartbeat_seconds))
        launcher = str(config.hydra.launcher.get("_target_", ""))
        if launcher != BASIC:
            seen = Watched(directory, run_id, own_lines="submitit" in launcher)
            sweep.ends.enter_context(watching(log_of(config), seen))
        return sweep

    def close(self, cut_short: str) -> Ended:
        self.ends.close()
        found: comparison.Comparison | None = None
        with signals_held():
            with suppress_outage():
                reap_orphans(self.store)
                for folder in sync.with_points([self.directory]):  # of points that the store was away for
                    if folder != self.directory:
                        sync.deliver_what_waits(self.store, folder)
                found = comparison.compare(comparison.points_of(self.store, self.run_id))
            failures = _failures(found) if found else _failures_here(self.directory)
            cause = cut_short
            if failures and not cut_short:
                cause = f"{len(failures)} of the sweep's runs failed, the last with: {failures[-1][1]}"
            status = "KILLED" if cut_short else "FAILED" if failures else "FINISHED"
            try:
                self.store.tag(self.run_id, {"outcome": "failed" if cause else "done", "cause": cause})
                if found:
                    leave_comparison(self.store, self.run_id, self.directory, found, cause)
                else:  # `compare_again` makes up for it
                    (self.directory / comparison.TABLE).unlink(missing_ok=True)
            finally:
                self.store.finish(self.run_id, status)
                forget_locks(self.directory)
                sync.say_what_waits(self.store, self.directory, self.tell)
        code = max((code for code, _ in failures), default=1 if cut_short else 0)
        return Ended(found or comparison.compare([]), self.run_id, self.directory, code, cause)


def _failures(found: comparison.Comparison) -> list[tuple[int, str]]:
    """Exit code and cause of each point that failed."""
    return [(p.exit_code, p.cause or f"point {p.number} {p.status}") for p in found.points if p.exit_code]


def _failures_here(directory: Path) -> list[tuple[int, str]]:
    """The same of what the points left in the sweep's folder, where the store cannot be asked."""
    failures = []
    for folder in sorted((f for f in directory.iterdir() if f.name.isdigit()), key=lambda folder: int(folder.name)):
        with suppress(OSError, ValueError, TypeError):
            summary = read_summary(folder / paths.SUMMARY)
            if summary.status == "failed":
                failures.append((1, summary.cause or f"point {folder.name} failed"))
    return failures


def _teller(log: str) -> Callable[[str], None]:
    return lambda line: announce(log, line, {"event": "remark", "text": line})


def _take_up(store: SealedStore, earlier: Earlier, tags: dict[str, str]) -> str:
    """Let the run of an earlier sweep go on, as if it had never ended."""
    times = {"continued": str(earlier.continued + 1), "orphan": "false", "outcome": "", "cause": ""}
    store.take_up(earlier.run_id)
    store.tag(earlier.run_id, {**tags, **times})
    store.client.update_run(earlier.run_id, status="RUNNING")
    return earlier.run_id


def _prepare(config: DictConfig, directory: Path) -> None:
    """What points composed in other processes and folders must know: Hydra hands them its own overrides."""
    quoted = str(directory).replace("\\", "\\\\").replace("'", "\\'")
    with read_write(config), open_dict(config):
        config.hydra.sweep.dir = str(directory)
        config.hydra.overrides.hydra.append(f"hydra.sweep.dir='{quoted}'")
        if RAY in str(config.hydra.launcher.get("_target_", "")):
            uri = os.environ.get(
                URI, ""
            )  # its workers have the environment of the cluster, whose logs tell what is added
            passed = {URI: uri} if uri and hidden(uri) == uri else {}
            start = OmegaConf.to_container(config.hydra.launcher.ray.init, resolve=True) or {}
            assert isinstance(start, dict)
            environment = dict(start.get("runtime_env") or {})
            environment["env_vars"] = {**passed, **(environment.get("env_vars") or {})}
            # The launcher sets the size of the store where there is none, which a cluster that runs already refuses.
            config.hydra.launcher.ray.init = {"object_store_memory": None, **start, "runtime_env": environment}
