"""What is written into the tracking store: a run with nested stage runs that tell their story without a download."""

from __future__ import annotations

import getpass
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from pipeline import facts
from pipeline.checkpoint import made
from pipeline.declaration import StageSpec
from pipeline.keys import KeyParts
from pipeline.lifecycle import Terminated, cause_of, signals_held
from pipeline.outbox import suppress_outage
from pipeline.seal import SEAL_TAG, SealedStore
from pipeline.store import NOTE, TAG, Store
from pipeline.story import RUN_NAME, STARTED, now, padded, run_note
from pipeline.summary import StageState, Summary
from stages import paths
from stages.contract import Dataset, StageResult
from stages.errors import MoesaicError
from stages.temporary import temporary_folder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OVERRIDES = "overrides.yaml"
MACHINE = "machine.json"
COMPRESSION = 3
"""Of figures: what makes them a few percent larger than 6, which is usual, and takes half as long."""
DIFF = "git.diff.txt"  # an ending that the UI shows


def start_run(
    store: Store, config: DictConfig, overrides: list[str], tags: Mapping[str, str], parent: str | None = None
) -> str:
    """A new run with its config, its overrides and the code's state. The id of the run."""
    kept = {"overrides": "\n".join(overrides)}
    run_id = store.start(run_name(config, overrides), {**tags, **kept, **_provenance()}, parent)
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    store.params(run_id, _flat({str(k): v for k, v in plain.items() if k != "pipeline"}))
    with temporary_folder("start") as folder:
        paths.write_text(folder / paths.CONFIG, OmegaConf.to_yaml(config, resolve=True))
        paths.write_text(folder / OVERRIDES, OmegaConf.to_yaml(OmegaConf.create(overrides)))
        paths.write_json(folder / MACHINE, facts.machine_facts())
        if diff := facts.git_diff():
            paths.write_text(folder / DIFF, diff)
        store.artifacts(run_id, folder)
    return run_id


def start_sweep(store: Store, overrides: list[str], tags: Mapping[str, str]) -> str:
    """A new run that those of a sweep's points are put under. The id of the run."""
    swept = [o for o in overrides if not o.lstrip("+~").startswith(("tracking", "run.", "hydra", "log=", "sweep."))]
    return store.start(f"sweep {' '.join(swept)}"[:200].strip(), {**tags, **_provenance()})


def finish_run(store: SealedStore, summary: Summary, directory: Path, overrides: Sequence[str], status: str) -> None:
    """Metrics of all stages, links to them, the summary, the report, the note and the final status of a run."""
    assert summary.run_id is not None
    metrics = {
        f"{stage}.{name}": value for stage, state in summary.stages.items() for name, value in state.metrics.items()
    }
    states = {_shown(name): _taken(state) for name, state in summary.stages.items()}
    made_by = {}
    for name, state in summary.stages.items():
        if state.run_id:
            with suppress_outage():  # a stage of another run; then nothing links to it but its id
                made_by[name] = store.sealed(state.run_id)
    seals = {f"{SEAL_TAG}.{name}": sealed.seal for name, sealed in made_by.items()}
    note = run_note(store, summary, made_by, overrides)
    story = {"outcome": summary.status, "cause": summary.cause or "", NOTE: note}
    store.datasets(summary.run_id, [dataset for sealed in made_by.values() for dataset in sealed.datasets])
    for name in (paths.SUMMARY, paths.REPORT):
        if (directory / name).is_file():
            store.artifact(summary.run_id, directory / name)
    store.finish(summary.run_id, status, metrics=metrics, tags={**states, **seals, **story})


def shows(store: Store, run_id: str | None, stage: str, state: StageState) -> None:
    """While the run still goes on: which result of another run it took, so that nobody removes that."""
    if run_id is not None:
        store.tag(run_id, {_shown(stage): _taken(state)})


def _shown(stage: str) -> str:
    return f"{TAG}stage.{stage}"


def _taken(state: StageState) -> str:
    return f"{state.state} {state.run_id or ''}".strip()


def lineage(spec: StageSpec, parts: KeyParts, summary: Summary) -> dict[str, Dataset]:
    """What a stage takes of others, by where it comes from. MLflow keeps one data set of a name and digest for all runs,
    so that only the words beside it can name the run."""
    return {
        f"from {stage}, run {summary.stages[stage].run_id}": Dataset(f"{stage}/{file}", "a stage", parts.inputs[name])
        for name, (stage, file) in spec.inputs.items()
    }


@dataclass
class StageRecord:
    """The nested run of a stage that is running. `metrics`, `tags`: what its end will say."""

    store: Store
    run_id: str
    metrics: dict[str, float] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def keep(self, folder: Path, result: StageResult) -> None:
        """Upload the stage's folder and note what it reported."""
        self.metrics |= result.metrics
        self.tags |= {**result.tags, NOTE: padded(result.note)}
        self.store.datasets(self.run_id, result.datasets)
        self.store.artifacts(self.run_id, folder, protect=True)


@contextmanager
def stage_run(
    store: Store, parent: str, of: str, spec: StageSpec, parts: KeyParts, why: str, lineage: Mapping[str, Dataset]
) -> Iterator[StageRecord]:
    """A nested run of the run called `of`, with what it takes from other stages (`lineage`). It is FINISHED if the block ends well, else FAILED or KILLED with the cause as its note."""
    tags = {
        "kind": "stage",
        "stage": spec.name,
        "key": parts.key,
        "code_digest": parts.code_digest,
        "why": why,
        RUN_NAME: of,
        STARTED: now(),
        **{f"moesaic.input.{name}": digest for name, digest in parts.inputs.items()},
        **_provenance(),
    }
    stage: StageRecord | None = None
    try:
        with signals_held():  # a stage run that nobody knows of would never end
            stage = StageRecord(store, store.start(spec.name, tags, parent))
        store.params(stage.run_id, _flat(dict(parts.config)))
        for origin, dataset in lineage.items():
            store.datasets(stage.run_id, [dataset], origin)
        yield stage
    except BaseException as error:
        if stage is None:
            raise
        killed = isinstance(error, KeyboardInterrupt | Terminated | SystemExit)
        cause = cause_of(error)
        note = error.result.note if isinstance(error, MoesaicError) and error.result else ""
        ended = {**stage.tags, NOTE: f"**{cause}**\n\n{note}"}
        store.finish(stage.run_id, "KILLED" if killed else "FAILED", metrics=stage.metrics, tags=ended)
        raise
    store.finish(stage.run_id, "FINISHED", metrics=stage.metrics, tags=stage.tags)
    made(store, parts)


def save_figures(folder: Path, figures: Mapping[str, Figure]) -> None:
    for name, figure in figures.items():
        (folder / paths.FIGURES).mkdir(exist_ok=True)
        with paths.atomic(folder / paths.FIGURES / f"{name}.png") as temporary:
            figure.savefig(temporary, dpi=110, metadata={"Software": None}, pil_kwargs={"compress_level": COMPRESSION})


def _provenance() -> dict[str, str]:
    git = facts.git_facts()
    tags = {
        "mlflow.source.name": "moesaic",
        "mlflow.source.type": "LOCAL",
        "mlflow.user": _user(),
        "version": facts.machine_facts()["packages"]["moesaic"],
        "machine": facts.machine_facts()["host"],
    }
    if git:
        tags |= {"mlflow.source.git.commit": git["commit"], "git_dirty": str(git["dirty"]).lower()}
    return tags


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run under an id that no account has
        return str(os.getuid())


def run_name(config: DictConfig, overrides: list[str]) -> str:
    """A name that tells runs apart: model, topology, and what was set beside them."""
    topology = f"{OmegaConf.select(config, 'topology.nodes')}x{OmegaConf.select(config, 'topology.gpus_per_node')}"
    name = str(OmegaConf.select(config, "topology.name") or "")
    parts = [OmegaConf.select(config, "model.name"), name if topology in name else topology]
    parts += [
        o
        for o in overrides
        if not o.lstrip("+~").startswith(("model=", "topology", "tracking", "run.", "hydra", "log=", "sweep."))
    ]
    return " ".join(str(part) for part in parts if part)[:200]


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, item in value.items():
        if isinstance(item, Mapping):
            flat.update(_flat(item, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = item if isinstance(item, str) else json.dumps(item)
    return flat
