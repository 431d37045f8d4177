"""What ranks of tests do, each in a process that `launch` starts. A failed assertion fails the test."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist

from stages.topology import Device, Link, Links, Topology
from stages.update import pipelined, reference
from stages.update.calibrate_executors import Probe, measure_executors
from stages.update.config import UpdateStageConfig
from stages.update.job import Job
from stages.update.moved import Moved
from stages.update.progress_board import Phase
from stages.update.rank import Rank
from stages.update.weights import Weights
from stages.update.worker import update_rank
from tests.stages.update.cases import Case, check, config_of, job_of


def run_cases(rank: Rank, cases: list[Case], found: Path, **options: object) -> None:
    """Run one update after the other in one process group, with these options; how many checksums were right, in the
    file `found`."""
    compared = 0
    for case in cases:
        job, config = job_of(case, rank.ranks), config_of(case, rank.ranks)
        measured = update_rank(rank, replace(config, update=replace(config.update, **options)), job)
        if rank.rank == 0:
            compared += check(case, job, measured)
    if rank.rank == 0:
        found.write_text(str(compared))


def found_overheads(rank: Rank, *probes: Probe) -> None:
    """All ranks find the same overheads, of which some cannot be nothing."""
    topology = Topology("here", 1, rank.ranks, links=Links(Link(1e3), Link(1e3)), device=Device(1e3, 1e3))
    device = measure_executors(rank, topology, dict.fromkeys(("reference", "pipelined"), probes))
    overheads = [device.layer_us, device.batch_us, device.layer_message_us or 0.0, device.batch_message_us or 0.0]
    assert [rank.slowest(value) for value in overheads] == overheads
    assert overheads[0] + overheads[2] > 1
    assert overheads[1] + overheads[3] > 1
    assert (device.copy_gb_per_s, topology.device.batch_us) == (1e3, 0.0)


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


def give_up_waiting(rank: Rank) -> None:
    """Rank 0 ends as NCCL's watchdog ends it when rank 1 does not answer."""
    rank.barrier()
    rank.report(Phase.batch, 5 + rank.rank)
    if rank.rank == 1:
        come_to_grief("hang")
    print("Watchdog caught collective operation timeout: WorkNCCL(OpType=ALLREDUCE)", file=sys.stderr, flush=True)
    os.abort()


def say_environment(rank: Rank, folder: Path) -> None:
    """Leave what the process sees in a file a rank, and print to the log."""
    print(f"rank {rank.rank} says hello")
    names = ("NCCL_NVLS_ENABLE", "GLOO_SOCKET_IFNAME", "OMP_NUM_THREADS", "MOESAIC_TEST_MARK", "NCCL_HOSTID")
    dist.barrier()
    (folder / str(rank.rank)).write_text(" ".join(os.environ.get(name, "-") for name in names))


def prove(rank: Rank, config: UpdateStageConfig, job: Job, mishap: str, found: Path) -> None:
    """An update whose weights are spoiled on rank 1 after the last commit; rank 0 leaves the functional proof."""
    for executor in (reference, pipelined):
        executor.prepare = spoiling(executor.prepare, mishap)
    measured = update_rank(rank, config, job)
    if rank.rank == 0:
        found.write_bytes(measured.functional.tobytes())


def spoiling(prepare: Callable[..., Callable[[], Moved]], mishap: str) -> Callable[..., Callable[[], Moved]]:
    """`prepare` of an executor, whose run spoils a slot of rank 1 after its last commit."""

    def spoiled(
        rank: Rank, config: UpdateStageConfig, job: Job, weights: Weights, *rest: object
    ) -> Callable[[], Moved]:
        run = prepare(rank, config, job, weights, *rest)

        def run_and_spoil() -> Moved:
            old = [[tensor.clone() for tensor in tensors] for tensors in weights]
            moved = run()
            if rank.rank == 1:
                spoil_slot(mishap, weights[2], old[2])
            return moved

        return run_and_spoil

    return spoiled


def spoil_slot(mishap: str, weights: list[torch.Tensor], old: list[torch.Tensor]) -> None:
    """`weights`, `old`: w13, its scale, w2 and its scale, of all slots of one layer."""
    if mishap == "weights stay":
        weights[0][1] = old[0][1]
    if mishap == "scales stay":
        weights[1][1] = old[1][1]
    if mishap == "one bit of one scale":
        weights[3].view(torch.int32)[1, 1, 2] ^= 1
    if mishap == "w2 stays":
        weights[2][1] = old[2][1]
