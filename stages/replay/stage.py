"""replay: when does it pay to place anew?

moesaic run experiment=replay
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from stages.contract import Count, Progress, StageResult
from stages.errors import BadInput
from stages.load import read_load
from stages.replay.config import ReplayStageConfig


def replay(config: ReplayStageConfig, inputs: Mapping[str, Path], folder: Path, progress: Progress) -> StageResult:
    """Walk the trace in `inputs["load"]` once for every rule. Raises `BadInput` for a trace of a single window."""
    from stages.replay import report
    from stages.replay.seconds import Speed
    from stages.replay.walk import Trace
    from stages.solvers.solver import solver_of

    progress("reading the loads", 0.0)
    load = read_load(inputs["load"])
    if load.windows < 2:
        raise BadInput("replay needs at least two windows of loads; choose a smaller collect.window or another source.")
    speed = Speed(config.tokens_per_second, config.model.moe_time_fraction, config.model.top_k or 1)
    solver = solver_of(config.place, config.model, config.topology, config.seed, load)
    trace = Trace(load, solver, speed, len(config.model.tensors), config.replay)
    walks = []
    for done, rule in enumerate(config.replay.rules):

        def told(served: int, done: int = done, rule: str = rule) -> None:
            part = (done + served / load.windows) / len(config.replay.rules)
            progress(f"replaying with {rule}", part, Count("windows", served, load.windows))

        walks.append(trace.walk(rule, told))
    best = report.quickest(walks)
    return StageResult(
        files=report.write_walks(folder, walks, load.labels),
        metrics={
            **report.metrics_of(walks),
            "tokens_per_second": config.tokens_per_second,
            "moe_time_fraction": config.model.moe_time_fraction,
        },
        figures=report.draw(walks),
        tags={"replay.quickest": best.rule, "place.algorithm": config.place.algorithm},
        note=report.note(walks, config, cut=any(walk.cut for walk in walks)),
    )
