"""`moesaic export`: a run's placement as a file that an engine loads."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from pipeline.keys import read_manifest
from pipeline.store import TAG, Store
from stages import paths
from stages.engine_formats import WRITERS
from stages.errors import BadInput
from stages.placement import Placement, read_placement

if TYPE_CHECKING:
    from mlflow.entities import Run

PLACE = "place"


def export(store: Store, prefix: str, engine: str, out: Path) -> str:
    """Write the placement that the run of `prefix` made or took into `out`; a sentence that says so."""
    if out.is_dir() or not out.parent.is_dir():
        raise BadInput(f"--out {out} is not possible: name a file in a folder that exists.")
    run = store.find(prefix)
    if run.data.tags.get(f"{TAG}stage") == PLACE:
        place = run
    else:
        run = store.pipeline_run(run)
        made_by = run.data.tags.get(f"{TAG}stage.{PLACE}", "").partition(" ")[2]
        if not made_by:
            raise BadInput(f"Run {run.info.run_id[:8]} has no placement: its place stage did not finish.")
        place = store.run(made_by)
    placement, model = _artifacts(store, place, run)
    WRITERS[engine](out, placement, first_moe_layer=model[0], dense_layers=model[1])
    rows = placement.layers
    return f"Wrote the placement of run {run.info.run_id[:8]} ({rows} MoE layers × {placement.slots} slots) to {out}"


def _artifacts(store: Store, place: Run, run: Run) -> tuple[Placement, tuple[int, list[int]]]:
    with tempfile.TemporaryDirectory(prefix="moesaic-") as temporary:
        folder = Path(temporary)
        files = {name: store.fetch(place, name, folder) for name in (paths.MANIFEST, paths.PLACEMENT)}
        config = store.fetch(run, paths.CONFIG, folder)
        gone = [name for name, path in {**files, paths.CONFIG: config}.items() if path is None]
        if gone or config is None:
            raise BadInput(f"Artifact {gone[0]} of run {place.info.run_id[:8]} is gone.")
        manifest, tensors = files[paths.MANIFEST], files[paths.PLACEMENT]
        assert manifest is not None
        assert tensors is not None
        if paths.sha256(tensors) != read_manifest(manifest).outputs[paths.PLACEMENT]:
            raise BadInput(f"Artifact {paths.PLACEMENT} of run {place.info.run_id[:8]} was changed since it was made.")
        model = yaml.safe_load(config.read_text(encoding="utf-8"))["model"]
        return read_placement(tensors).without_frame(), (int(model["first_moe_layer"]), list(model["dense_layers"]))
