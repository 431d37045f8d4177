"""Ranks that come to grief on purpose, in a real update. numpy and torch alone, so that GPU tests can use it too."""

from __future__ import annotations

import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stages.batches import Batches
from stages.staging import Budget
from stages.update import host_lane, machinery, pipelined, worker
from stages.update.config import UpdateStageConfig
from stages.update.job import Job
from stages.update.journal import HEADER_BYTES, Journal
from stages.update.lane import Hooks
from stages.update.program import Program
from stages.update.rank import Rank
from stages.update.staging import Staging
from stages.update.weights import Weights, checksums
from stages.update.worker import update_rank


@dataclass(frozen=True)
class Trouble:
    """What happens to rank `who` (None: to all) in batch `batch`, or in the next one in which it can; `times`: how often
    it does."""

    what: str
    who: int | None = 1
    batch: int = 2
    times: int = 1000


def troubled_update(rank: Rank, config: UpdateStageConfig, job: Job, found: Path, trouble: Trouble, left: Path) -> None:
    """`save_update` with trouble. A rank that outlives it leaves the checksums of its slots in the folder `left`."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the others are stopped as soon as one is gone
    kept: list[Weights] = []
    allocate = worker.allocate
    worker.allocate = lambda *args: kept.append(allocate(*args)) or kept[-1]
    hooks = HOOKS[trouble.what](rank, trouble, kept) if trouble.who in (rank.rank, None) else Hooks()
    try:
        measured = update_rank(rank, config, job, hooks)
    except BaseException:
        if kept and rank.device.type == "cpu":  # a GPU may still wait for ranks that have gone
            np.save(left / f"{rank.rank}.npy", checksums(kept[0]))
        raise
    if rank.rank == 0:
        found.write_bytes(measured.to_bytes())


Made = Callable[[Rank, Trouble, list[Weights]], Hooks]


def flip(rank: Rank, trouble: Trouble, kept: list[Weights]) -> Hooks:
    """A bit of what has arrived is another one."""
    programs, count = captured(), iter(range(trouble.times))

    def after_arrival(batch: int, staging: Staging) -> None:
        rows = programs[0].arrivals.of(batch).row
        if batch >= trouble.batch and len(rows) and next(count, None) is not None:
            flip_a_bit(staging, int(rows[-1]))

    return Hooks(after_arrival=after_arrival)


def nothing_arrives(rank: Rank, trouble: Trouble, kept: list[Weights]) -> Hooks:
    """As `flip`; and what is put down when the update has stopped arrives wrong too."""

    def after_arrival(batch: int, staging: Staging) -> None:
        staging.data.fill_(90)

    machinery.NO_HOOKS = Hooks(after_arrival=after_arrival)
    return flip(rank, trouble, kept)


def flip_a_bit(staging: Staging, row: int) -> None:
    staging.tensor(row, len(staging.layout.nbytes) - 1)[-1:].bitwise_xor_(4)


def wrong_expert(rank: Rank, trouble: Trouble, kept: list[Weights]) -> Hooks:
    """An expert leaves from the slot beside its own, as it is there, whole and right in itself."""

    def spoil(program: Program) -> None:
        sends = program.sends
        n = int(sends.begin[trouble.batch])
        assert sends.slot[n] >= 0
        sends.slot[n] = (sends.slot[n] + 1) % kept[0][0][0].shape[0]

    captured(spoil)
    return Hooks()


def kill(rank: Rank, trouble: Trouble, kept: list[Weights]) -> Hooks:
    """SIGKILL before the batch is sent."""
    return Hooks(before_send=lambda batch: die(batch == trouble.batch))


def kill_during(rank: Rank, trouble: Trouble, kept: list[Weights]) -> Hooks:
    """SIGKILL when the batch has arrived."""
    return Hooks(after_arrival=lambda batch, staging: die(batch == trouble.batch))


def kill_while_writing(rank: Rank, trouble: Trouble, kept: list[Weights]) -> Hooks:
    """SIGKILL between two tensors of a commit: a slot is torn."""
    copy = host_lane._copy
    at: list[int] = []

    def copy_half(copies: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        if at and at[-1] >= trouble.batch and len(copies) > 1:
            copy(copies[:1])
            die(True)
        copy(copies)

    host_lane._copy = copy_half
    return Hooks(after_arrival=lambda batch, staging: at.append(batch))


def kill_after(rank: Rank, trouble: Trouble, kept: list[Weights]) -> Hooks:
    """SIGKILL when the batch is committed and recorded."""
    return Hooks(after_commit=lambda batch: die(batch == trouble.batch))


def stop(rank: Rank, trouble: Trouble, kept: list[Weights]) -> Hooks:
    """SIGSTOP before the batch is sent."""
    return Hooks(before_send=lambda batch: os.kill(os.getpid(), signal.SIGSTOP) if batch == trouble.batch else None)


def stop_after(rank: Rank, trouble: Trouble, kept: list[Weights]) -> Hooks:
    """SIGSTOP when the batch is committed and recorded."""
    return Hooks(after_commit=lambda batch: os.kill(os.getpid(), signal.SIGSTOP) if batch == trouble.batch else None)


def wait(rank: Rank, trouble: Trouble, kept: list[Weights]) -> Hooks:
    """The batch is not sent until somebody ends this rank, which has left a sign."""

    def stay(batch: int) -> None:
        if batch == trouble.batch:
            Path("waiting").touch()
            time.sleep(600)

    return Hooks(before_send=stay)


def disagree(rank: Rank, trouble: Trouble, kept: list[Weights]) -> Hooks:
    """One bit of one replica differs before anything moves."""
    fill = worker.fill

    def fill_and_spoil(weights: Weights, *rest: Any) -> None:
        fill(weights, *rest)
        weights[1][0][0].view(torch.uint8).view(-1)[5] ^= 1

    worker.fill = fill_and_spoil
    return Hooks()


def other_batches(rank: Rank, trouble: Trouble, kept: list[Weights]) -> Hooks:
    """The rank cuts the plan in another way."""
    batches_of = pipelined.batches_of

    def cut_otherwise(job: Job, spent: Budget, steps: np.ndarray, gpus_per_node: int | None) -> Batches:
        return batches_of(job, replace(spent, rows=spent.rows + 1), steps, gpus_per_node)

    pipelined.batches_of = cut_otherwise
    return Hooks()


def no_memory(rank: Rank, trouble: Trouble, kept: list[Weights]) -> Hooks:
    """The address space has no room for staging."""
    assemble = pipelined.assemble

    def assemble_in_less(*args: Any) -> Any:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (16 << 20),) * 2)
        return assemble(*args)

    pipelined.assemble = assemble_in_less
    return Hooks()


def no_gpu_memory(rank: Rank, trouble: Trouble, kept: list[Weights]) -> Hooks:
    """Somebody else has taken the GPU's memory, but for a little."""
    assemble, taken = pipelined.assemble, []

    def assemble_in_less(*args: Any) -> Any:
        free = torch.cuda.mem_get_info(rank.device)[0]
        taken.append(torch.empty(free - (32 << 20), dtype=torch.uint8, device=rank.device))
        return assemble(*args)

    pipelined.assemble = assemble_in_less
    return Hooks()


def no_disk(rank: Rank, trouble: Trouble, kept: list[Weights]) -> Hooks:
    """The file system has no room for the journal."""

    def make(*args: Any) -> Journal:
        with no_growth():
            return Journal(*args)

    pipelined.Journal = make
    return Hooks()


def no_disk_later(rank: Rank, trouble: Trouble, kept: list[Weights]) -> Hooks:
    """From some batch on nothing can be written into the journal."""
    commit = Journal.commit

    def commit_in_less(journal: Journal, batch: int) -> None:
        with no_growth() if batch >= trouble.batch else nullcontext():
            commit(journal, batch)

    Journal.commit = commit_in_less
    return Hooks()


@contextmanager
def no_growth() -> Iterator[None]:
    """Within the block no file of this process gets longer than the head of a journal."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (HEADER_BYTES, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


TROUBLES = (
    flip, nothing_arrives, wrong_expert, kill, kill_during, kill_while_writing, kill_after, stop, stop_after, wait, disagree,
    other_batches, no_memory, no_gpu_memory, no_disk, no_disk_later,
)  # fmt: skip
HOOKS: dict[str, Made] = {function.__name__: function for function in TROUBLES}


def die(now: bool) -> None:
    if now:
        os.kill(os.getpid(), signal.SIGKILL)


def captured(change: Callable[[Program], None] = lambda program: None) -> list[Program]:
    """The program of this rank, once it has been compiled, after `change`."""
    compile_program = pipelined.compile_program
    programs: list[Program] = []

    def compile_and_keep(*args: Any) -> Program:
        programs.append(compile_program(*args))
        change(programs[0])
        return programs[0]

    pipelined.compile_program = compile_and_keep
    return programs
