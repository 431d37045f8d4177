"""place: which expert sits in which slot?

moesaic run run.last=place topology=h100_2x8 place.redundant_experts=16
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from stages.balance import gpu_load
from stages.contract import Progress, StageResult
from stages.expert_map import ExpertMap, slots_per_rank
from stages.gpu_balance import write_gpu_balance
from stages.load import read_load
from stages.moves import moves_between, write_moves
from stages.place.config import PlaceStageConfig
from stages.place.report import judge, note
from stages.placement import Placement, write_placement
from stages.resize import framed
from stages.solvers.fit import fitted_load
from stages.solvers.given import resized_current, start_from
from stages.solvers.solver import Solver, solver_of, target_of


def place(config: PlaceStageConfig, inputs: Mapping[str, Path], folder: Path, progress: Progress) -> StageResult:
    """From the loads in `inputs["load"]` to a placement that is at least complete, and judged."""
    progress("reading the loads", 0.0)
    load = read_load(inputs["load"])
    progress("getting the solver ready (compiled once on a machine)", 0.1)
    world = config.topology.ranks
    config = replace(config, topology=target_of(config.topology, config.place.ranks))
    solver = solver_of(config.place, config.model, config.topology, config.seed, load)
    resizing = config.place.resizes
    if resizing:
        now, left = resized_current(config.place, load, world, config.model)
        solver = replace(solver, current=start_from(now, left, load.experts, solver.capacity))

    progress(f"placing {load.layers} layers of {load.experts} experts in {solver.slots} slots", 0.2)
    start = time.perf_counter()
    found = solver.solve(fitted_load(load.logical_count, config.place))
    solve_seconds = time.perf_counter() - start
    placement = Placement(found.map, solver.current, load.experts)
    judgement = judge(load, placement, solver, found)
    if resizing:
        placement = _in_one_frame(found.map, solver.topology.ranks, now, left, world, load.experts)
        judgement = judgement.between(placement, world, gpu_load(load.total(), now, left))
    moves = moves_between(placement.current, placement.physical_to_logical_map, load.experts, world, world)
    files = (
        *write_placement(folder, placement),
        *write_moves(folder, moves),
        *write_gpu_balance(folder, judgement.balance),
    )

    progress("judging the placement", 0.5)
    metrics = judgement.metrics()
    tags = _tags(config, solver)
    result = StageResult(
        files=files,
        metrics={**metrics, "solve_seconds": solve_seconds},
        figures=judgement.figures(),
        tags=tags | judgement.tags(),
        note=note(judgement, _headline(config, placement, tags), metrics),
    )
    progress("placed", 1.0)
    return result


def _in_one_frame(
    new: ExpertMap, new_ranks: int, now: ExpertMap, now_ranks: int, world: int, experts: int
) -> Placement:
    own = slots_per_rank(new, new_ranks)
    per_rank = max(own, slots_per_rank(now, now_ranks))
    shape = (world, new_ranks, own)
    return Placement(framed(new, new_ranks, world, per_rank), framed(now, now_ranks, world, per_rank), experts, shape)


def _tags(config: PlaceStageConfig, solver: Solver) -> dict[str, str]:
    tags = {
        "place.algorithm": config.place.algorithm,
        "place.current": config.place.current_name,
        "place.slots": str(solver.slots),
        "place.ranks": str(config.topology.ranks),
    }
    if config.place.algorithm == "eplb":
        tags["place.policy"] = "hierarchical" if solver.hierarchical else "global"
    return tags


def _headline(config: PlaceStageConfig, placement: Placement, tags: Mapping[str, str]) -> str:
    how = f"`{tags['place.algorithm']}`" + (f" ({tags['place.policy']})" if "place.policy" in tags else "")
    return (
        f"{how} put {placement.experts} experts a layer into {placement.slots} slots, in {placement.layers} MoE layers, "
        f"on {config.topology.nodes} × {config.topology.gpus_per_node} GPUs; before: `{tags['place.current']}`."
    )
