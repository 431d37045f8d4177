"""What ranks of tests do, each in a process that `launch` starts. A failed assertion fails the test."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import torch.distributed as dist

from stages.update import reference
from stages.update.config import UpdateStageConfig
from stages.update.job import Job
from stages.update.progress_board import Phase
from stages.update.rank import Rank
from stages.update.worker import update_rank
from tests.stages.update.cases import Case, check, config_of, job_of


def run_cases(rank: Rank, cases: list[Case], found: Path) -> None:
    """Run one update after the other in one process group; how many checksums were right, in the file `found`."""
    compared = 0
    for case in cases:
        job = job_of(case, rank.ranks)
        measured = update_rank(rank, config_of(case, rank.ranks), job)
        if rank.rank == 0:
            compared += check(case, job, measured)
    if rank.rank == 0:
        found.write_text(str(compared))


def spoil(rank: Rank, config: UpdateStageConfig, job: Job, how: str, who: int, layer: int) -> None:
    """An update in which rank `who` comes to grief when it has reached layer `layer`."""
    move = reference.update_expert_weights_single_layer
    calls = iter(range(job.layers))

    def move_or_fail(*args: object, **kwargs: object) -> object:
        if next(calls) == layer and rank.rank == who:
            come_to_grief(how)
        return move(*args, **kwargs)

    reference.update_expert_weights_single_layer = move_or_fail
    update_rank(rank, config, job)


def come_to_grief(how: str) -> None:
    if how == "raise":
        raise RuntimeError("the weights are gone")
    if how == "hang":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)
    if how == "exit":
        os._exit(0)
    os.kill(os.getpid(), getattr(signal, how))


def wait_in_layer(rank: Rank, layer: int) -> None:
    """Reach a layer and stay there until stopped."""
    rank.barrier()
    rank.report(Phase.update, layer)
    time.sleep(600)


def say_environment(rank: Rank, folder: Path) -> None:
    """Leave what the process sees in a file a rank, and print to the log."""
    print(f"rank {rank.rank} says hello")
    names = ("NCCL_NVLS_ENABLE", "GLOO_SOCKET_IFNAME", "OMP_NUM_THREADS", "MOESAIC_TEST_MARK", "NCCL_HOSTID")
    dist.barrier()
    (folder / str(rank.rank)).write_text(" ".join(os.environ.get(name, "-") for name in names))
