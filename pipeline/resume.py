"""Which interrupted sweep a new one continues: the last one of the same command in the same folder."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from pipeline import comparison
from pipeline.store import TAG, Store
from stages.errors import BadInput

if TYPE_CHECKING:
    from mlflow.entities import Run

AUTO, NEVER = "auto", "never"
TELLING = ("log=", "tracking.", "sweep.resume=", "run.force=")
"""Overrides that do not make a sweep another one."""


@dataclass(frozen=True)
class Earlier:
    """The run of a sweep that goes on, its folder, how many of its points are done, and how often it was continued."""

    run_id: str
    directory: Path
    done: int
    continued: int


def sweep_key(config: DictConfig) -> str:
    """What sweeps of the same command in the same folder have in common."""
    overrides = [o for o in map(str, config.hydra.overrides.task) if not o.lstrip("+~").startswith(TELLING)]
    sweeper: Any = OmegaConf.select(config, "hydra.runtime.choices.hydra/sweeper")
    facts = [str(Path.cwd()), str(sweeper or ""), overrides]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def find_earlier(store: Store, config: DictConfig, key: str, resume: str) -> Earlier | None:
    """The sweep to continue, if there is one. Raises `BadInput` where `sweep.resume` names one that cannot be."""
    if resume == NEVER:
        return None
    if resume != AUTO:
        return _named(store, resume)
    for run in store.search(f"tags.`{TAG}kind` = 'sweep' and tags.`{TAG}sweep_key` = '{key}'", limit=1):
        directory = Path(run.data.tags.get(f"{TAG}directory", ""))
        chosen = [o for o in map(str, config.hydra.overrides.hydra) if o.startswith("hydra.sweep.dir=")]
        same_place = not chosen or Path(config.hydra.sweep.dir).absolute() == directory
        if run.info.status == "KILLED" and directory.is_dir() and same_place:
            return _earlier(store, run, directory)
    return None


def _named(store: Store, resume: str) -> Earlier:
    run = store.find(resume)
    directory = Path(run.data.tags.get(f"{TAG}directory", ""))
    if run.data.tags.get(f"{TAG}kind") != "sweep":
        raise BadInput(f"sweep.resume={resume} is no sweep: name the run that its points are under, auto or never.")
    if run.info.status == "RUNNING":
        raise BadInput(f"sweep.resume={resume} still runs: let it end, or begin another one with sweep.resume=never.")
    if not directory.is_dir():
        raise BadInput(
            f"sweep.resume={resume}: its folder {directory} is not here; begin anew with sweep.resume=never."
        )
    return _earlier(store, run, directory)


def _earlier(store: Store, run: Run, directory: Path) -> Earlier:
    points = comparison.latest(comparison.points_of(store, run.info.run_id))
    done = sum(point.info.status == "FINISHED" for point in points)
    return Earlier(run.info.run_id, directory, done, int(run.data.tags.get(f"{TAG}continued", "0")))
