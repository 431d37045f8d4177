"""What every process of an attached run does in the tests. Rank 0 drives updates and says how they went.

torchrun … -m tests.stages.update.attached_script FOLDER [die]
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

from stages.contract import silent
from stages.errors import MoesaicError
from stages.placement import Placement, write_placement
from stages.transfers import write_transfers
from stages.update import attached
from stages.update.config import UpdateStageConfig
from stages.update.stage import update
from tests.stages.update.cases import Case, config_of, job_of

CASE = Case(nodes=2, slots_per_rank=3, experts=6, layers=4, kind="empty")
FAILING = {2: 1, 4: 2}
"""Ranks -> the rank that fails in layer 1 of its second update."""


def run(config: UpdateStageConfig, case: Case, folder: Path) -> dict[str, object]:
    job = job_of(case, config.topology.ranks)
    folder.mkdir()
    write_placement(folder, Placement(job.new, job.old, case.experts))
    write_transfers(folder, job.plan)
    inputs = {"placement": folder / "placement.safetensors", "transfers": folder / "transfers.parquet"}
    try:
        result = update(config, inputs, folder, silent)
    except MoesaicError as error:
        return {"error": str(error), "kind": type(error).__name__}
    return {"metrics": dict(result.metrics), "tags": dict(result.tags)}


def fail_once() -> None:
    """Let this process fail in layer 1 of its second update."""
    from stages.update import reference

    move = reference.update_expert_weights_single_layer
    calls = iter(range(1000))

    def move_or_fail(*args: object, **kwargs: object) -> object:
        if next(calls) == CASE.layers + 1:
            raise ValueError("no such weight")
        return move(*args, **kwargs)

    reference.update_expert_weights_single_layer = move_or_fail


def main(folder: Path, die: bool = False) -> int:
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    config = config_of(CASE, ranks)
    if not attached.is_leader():
        if rank == FAILING[ranks]:
            fail_once()
        return attached.follow(config)
    attached.lead()
    found = {"good": run(config, CASE, folder / "good")}
    if die:
        os.kill(os.getpid(), signal.SIGKILL)
    found["trouble"] = run(config, CASE, folder / "trouble")
    found["other config"] = run(replace(config, seed=5), CASE, folder / "other")
    found["again"] = run(config, CASE, folder / "again")
    (folder / "found.json").write_text(json.dumps(found))
    attached.release(7 if ranks == 2 else 0)
    return 0


if __name__ == "__main__":
    assert attached.is_attached()
    sys.exit(main(Path(sys.argv[1]), die=sys.argv[2:] == ["die"]))
