"""place: which expert sits in which slot?"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from stages.contract import Progress, StageResult
from stages.load import read_load
from stages.place.algorithms import is_hierarchical, solver_of
from stages.place.config import PlaceStageConfig
from stages.place.maps import current_map
from stages.place.report import judge, note
from stages.placement import Placement, write_placement


def place(config: PlaceStageConfig, inputs: Mapping[str, Path], folder: Path, progress: Progress) -> StageResult:
    """From the loads in `inputs["load"]` to a placement that is at least complete, and judged."""
    progress("reading the loads", 0.0)
    load = read_load(inputs["load"])
    ranks = config.topology.ranks
    solver, slots = solver_of(config, load)
    current = current_map(config.place, load, slots, ranks)

    progress(f"placing {load.layers} layers of {load.experts} experts in {slots} slots", 0.2)
    start = time.perf_counter()
    new = solver(load.logical_count.sum(axis=0))
    solve_seconds = time.perf_counter() - start
    placement = Placement(new, current, load.experts)
    files = write_placement(folder, placement)

    progress("judging the placement", 0.6)
    judgement = judge(load, placement, ranks, solver)
    metrics = judgement.metrics()
    tags = _tags(config, slots)
    result = StageResult(
        files=files,
        metrics={**metrics, "solve_seconds": solve_seconds},
        figures=judgement.figures(),
        tags=tags,
        note=note(judgement, _headline(config, placement, tags), metrics),
    )
    progress("placed", 1.0)
    return result


def _tags(config: PlaceStageConfig, slots: int) -> dict[str, str]:
    tags = {
        "place.algorithm": config.place.algorithm,
        "place.current": "file" if config.place.current_file else config.place.current,
        "place.slots": str(slots),
        "place.ranks": str(config.topology.ranks),
    }
    if config.place.algorithm == "eplb":
        tags["place.policy"] = "hierarchical" if is_hierarchical(config) else "global"
    return tags


def _headline(config: PlaceStageConfig, placement: Placement, tags: Mapping[str, str]) -> str:
    how = f"`{tags['place.algorithm']}`" + (f" ({tags['place.policy']})" if "place.policy" in tags else "")
    return (
        f"{how} put {placement.experts} experts a layer into {placement.slots} slots, in {placement.layers} MoE layers, "
        f"on {config.topology.nodes} × {config.topology.gpus_per_node} GPUs; before: `{tags['place.current']}`."
    )
