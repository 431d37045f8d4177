"""`moesaic export`: a run's placement as a file that an engine loads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from pipeline.keys import read_manifest
from pipeline.store import TAG, Store
from stages import paths
from stages.engine_formats import FORMATS, LayerNumbers, export_placement
from stages.engine_formats.stored import Outgoing
from stages.errors import BadInput
from stages.placement import read_placement
from stages.temporary import temporary_folder

if TYPE_CHECKING:
    from mlflow.entities import Run

PLACE = "place"


def export(store: Store, prefix: str, engine: str, out: Path, layer_updates_per_iter: int = 0) -> str:
    """Write the placement that the run of `prefix` made or took into `out`; a sentence that says so."""
    if layer_updates_per_iter and engine != "trtllm":
        raise BadInput(f"--layer-updates-per-iter is for --to trtllm; {FORMATS[engine].engine} has no such thing.")
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
    outgoing = replace(_artifacts(store, place, run), layer_updates_per_iter=layer_updates_per_iter)
    export_placement(engine, out, outgoing)
    layers, slots = outgoing.map.shape
    return (
        f"Wrote the placement of run {run.info.run_id[:8]} ({layers} MoE layers × {slots} slots, {outgoing.ranks} ranks) "
        f"for {FORMATS[engine].engine} to {out}"
    )


def _artifacts(store: Store, place: Run, run: Run) -> Outgoing:
    with temporary_folder("export") as folder:
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
        placement = read_placement(tensors)
        value = yaml.safe_load(config.read_text(encoding="utf-8"))
        model, topology = value["model"], value["topology"]
        return Outgoing(
            placement.deployed,
            placement.experts,
            ranks=int(topology["nodes"]) * int(topology["gpus_per_node"])
            if placement.shape is None
            else placement.shape[1],
            numbers=LayerNumbers(int(model["first_moe_layer"]), tuple(model["dense_layers"])),
        )
