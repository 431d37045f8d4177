"""What every process of an attached run does in the tests. Rank 0 drives updates and says how they went.

torchrun … -m tests.stages.update.attached_script FOLDER [MISHAP]
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from stages.contract import silent
from stages.errors import MoesaicError
from stages.placement import Placement, write_placement
from stages.transfers import write_transfers
from stages.update import attached
from stages.update.config import UpdateStageConfig
from stages.update.lane import Hooks
from stages.update.stage import update
from tests.stages.update.cases import Case, config_of, job_of

CASE = Case(nodes=2, slots_per_rank=3, experts=6, layers=4, kind="permutation", staged=2)
FAILING = {2: 1, 4: 2}
"""Ranks -> the rank that comes to grief."""
TIMEOUT_SECONDS = 8.0


def run(config: UpdateStageConfig, folder: Path) -> dict[str, object]:
    job = job_of(CASE, config.topology.ranks)
    folder.mkdir()
    write_placement(folder, Placement(job.new, job.old, CASE.experts))
    write_transfers(folder, job.plan)
    inputs = {"placement": folder / "placement.safetensors", "transfers": folder / "transfers.parquet"}
    began = time.monotonic()
    try:
        result = update(config, inputs, folder, silent)
    except MoesaicError as error:
        return {"error": str(error), "kind": type(error).__name__, "seconds": time.monotonic() - began}
    return {"metrics": dict(result.metrics), "tags": dict(result.tags)}


def in_update(number: int, hooks: Hooks) -> None:
    """Let these hooks take part in one of the updates that this process is going to run."""
    from stages.update import session

    update_rank, count = session.update_rank, iter(range(number, -1000, -1))

    def hooked(*args: Any) -> Any:
        return update_rank(*args, hooks) if next(count) == 0 else update_rank(*args)

    session.update_rank = hooked


def fail(batch: int) -> None:
    if batch == 1:
        raise ValueError("no such weight")


def die(batch: int) -> None:
    if batch == 1:
        os.kill(os.getpid(), signal.SIGKILL)


def wait_for_the_cut(folder: Path, batch: int) -> None:
    if batch == 2:
        (folder / "ready").touch()
        while not (folder / "cut").exists():
            time.sleep(0.01)


def main(folder: Path, mishap: str = "") -> int:
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    config = config_of(CASE, ranks)
    config.update.journal = str(folder / "journal")
    if mishap == "cut":
        config.update.timeout_seconds = TIMEOUT_SECONDS
    if rank == FAILING[ranks] and mishap != "killed":
        in_update(1, Hooks(after_arrival=lambda batch, staging: fail(batch)))
        in_update(3, Hooks(after_arrival=lambda batch, staging: wait_for_the_cut(folder, batch)))
    if mishap == "killed" and rank == ranks - 1:
        in_update(1, Hooks(after_arrival=lambda batch, staging: die(batch)))
    if not attached.is_leader():
        return attached.follow(config)
    attached.lead()
    found = {"good": run(config, folder / "good")}
    if mishap == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    found["trouble"] = run(config, folder / "trouble")
    if mishap != "killed":
        found["other config"] = run(replace(config, seed=5), folder / "other")
        found["again"] = run(config, folder / "again")
    if mishap == "cut":
        found["cut"] = run(config, folder / "cut_off")
    (folder / "found.json").write_text(json.dumps(found))
    code = 7 if ranks == 2 else int(bool(mishap))
    attached.release(code)
    return code


if __name__ == "__main__":
    assert attached.is_attached()
    sys.exit(main(Path(sys.argv[1]), *sys.argv[2:]))
