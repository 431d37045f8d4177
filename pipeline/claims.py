"""What a run claims, held against its files and the other runs of the store: a sentence for each claim that is wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pipeline.declaration import StageSpec
from pipeline.evidence import Evidence
from pipeline.keys import Manifest, read_manifest
from pipeline.store import TAG, Store
from stages import paths

if TYPE_CHECKING:
    from mlflow.entities import Run


def manifest_of(evidence: Evidence) -> Manifest | None:
    try:
        return read_manifest(evidence.folder / paths.MANIFEST)
    except (OSError, ValueError, TypeError):
        return None


def manifest_faults(evidence: Evidence, stage: str) -> Iterator[str]:
    manifest, tags = manifest_of(evidence), evidence.run.data.tags
    if manifest is None:
        if evidence.run.info.status == "FINISHED":
            yield f"{paths.MANIFEST} is gone or cannot be read"
        return
    if manifest.stage != stage:
        yield f"{paths.MANIFEST} is that of a {manifest.stage} stage"
    if manifest.parts().key != manifest.key:
        yield f"the key in {paths.MANIFEST} is not the one that its code, config, inputs and environment give"
    if manifest.key != tags.get(f"{TAG}key"):
        yield f"the key in {paths.MANIFEST} is not that of the tag {TAG}key"
    for name, digest in manifest.outputs.items():
        file = evidence.folder / name
        if file.is_file() and paths.sha256(file) != digest:
            yield f"{name} is not the output that {paths.MANIFEST} names"


def inputs_that_do_not_fit(specs: dict[str, StageSpec], found: dict[str, Evidence]) -> Iterator[str]:
    for name, evidence in found.items():
        manifest, spec = manifest_of(evidence), specs.get(name)
        if manifest is None or spec is None:
            continue
        for key, (origin, file) in spec.inputs.items():
            made = manifest_of(found[origin]) if origin in found else None
            if made is not None and manifest.inputs.get(key) != made.outputs.get(file):
                yield f"the {key} that its {name} worked on is not the {file} that its {origin} made"


def summary_faults(evidence: Evidence, run: Run, found: dict[str, Evidence]) -> Iterator[str]:
    try:
        summary: dict[str, Any] = json.loads((evidence.folder / paths.SUMMARY).read_text(encoding="utf-8"))
        stages, tags = summary["stages"], run.data.tags
        if (summary["run_id"], summary["status"]) != (run.info.run_id, tags.get(f"{TAG}outcome")):
            yield f"{paths.SUMMARY} is not of this run, or tells another outcome"
        for name, state in stages.items():
            text = f"{state['state']} {state['run_id'] or ''}".strip()
            if text != tags.get(f"{TAG}stage.{name}"):
                yield f"{paths.SUMMARY} says {text} of {name}, and the tag {TAG}stage.{name} something else"
            if name in found and metrics_text(state["metrics"]) != metrics_text(found[name].run.data.metrics):
                yield f"{paths.SUMMARY} has other metrics of {name} than its run"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        yield f"{paths.SUMMARY} is gone or cannot be read"


def misplaced(store: Store, run: Run) -> Iterator[str]:
    if run.info.lifecycle_stage != "active":
        yield "it was deleted in MLflow, so that nobody sees it there"
    if run.info.experiment_id != store.experiment_id:
        yield f"it was put into the experiment {run.info.experiment_id}"


def strangers(store: Store, run: Run, known: set[str]) -> Iterator[str]:
    """Stage runs that someone put below a run which came to its end."""
    if run.info.status != "FINISHED":  # one that was interrupted may not have heard of its last stage
        return
    for child in store.search(f"tags.`mlflow.parentRunId` = '{run.info.run_id}'", limit=1000):
        if child.info.run_id not in known:
            yield f"the run {child.info.run_id[:8]} ({child.info.run_name}) is below it, and is none of its stages"


def metrics_text(metrics: dict[str, float]) -> str:
    return json.dumps({name: float(value) for name, value in metrics.items()}, sort_keys=True)  # in which NaN is NaN
