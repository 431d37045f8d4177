"""The pipelined executor: stage, check, vote and commit, batch by batch, while the next batch is on its way.

    stage   send and receive the experts of a batch into staging; hash what arrived and compare it with the truth
    vote    one all-reduce; only if every rank agrees
    commit  copy staging into the slots

A batch that arrives wrong is sent again, `update.retries` times; then the update stops cleanly: nobody commits it, and
experts that wait in staging, and that no slot holds any more, are put down in slots that can spare what they hold.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist

from stages.batches import Batches, cut, parked, reached
from stages.errors import BadInput
from stages.expert_map import ExpertMap
from stages.staging import Budget
from stages.transfers import Ints
from stages.update.config import UpdateStageConfig
from stages.update.garbage import no_garbage_collection
from stages.update.job import Job
from stages.update.journal import Journal, NoJournal
from stages.update.lane import NO_HOOKS, Fault, Hooks, Lane
from stages.update.machinery import Machinery, assemble, transport_of
from stages.update.moved import Moved
from stages.update.program import compile_program
from stages.update.progress_board import Phase
from stages.update.put_down import plan_put_down
from stages.update.rank import Rank
from stages.update.staging import Staging, as_bytes
from stages.update.stopped import all_faults
from stages.update.truth import Sums
from stages.update.weights import Weights, fill, fill_expert


@dataclass(frozen=True)
class Outcome:
    """`committed` of all batches; `faults`: what this rank found wrong in the batch that never arrived right;
    `resent`: how often a batch was sent again."""

    committed: int
    faults: list[Fault]
    resent: int


def run_batches(lane: Lane, total: int, first: int, retries: int) -> Outcome:
    """Run batches `first` to `total` - 1 on `lane`, each up to `retries` times more where it arrives wrong."""
    resent, failed_at, failures = 0, -1, 0
    while True:
        committed = lane.attempt(first)
        if committed == total:
            return Outcome(committed, [], resent)
        failures = failures + 1 if committed == failed_at else 1
        if failures > retries:
            return Outcome(committed, lane.faults, resent)
        failed_at, first, resent = committed, committed, resent + 1


def prepare(
    rank: Rank,
    config: UpdateStageConfig,
    job: Job,
    weights: Weights,
    truth: Sums,
    origin: float,
    hooks: Hooks = NO_HOOKS,
) -> Callable[[], Moved]:
    """What turns `weights` from the job's old map to its new one when called. All ranks call both. `truth`: `[L, E, K]`.

    Where the journal of an earlier run of the same job has batches that every rank committed, the slots are rebuilt to
    what they held then, and only the other batches run.
    """
    options = config.update
    way = transport_of(rank, options)
    spent = config.staging_budget(way, job.most_arrivals())
    batches = batches_of(job, spent, steps_of(job.layers, options.layers_per_step), config.topology.gpus_per_node)
    digest = job.digest(spent, batches.digest())
    _agree(rank, digest)
    program = compile_program(job.plan, batches, rank.rank, job.slots_per_rank)
    slots = [as_bytes(tensors) for tensors in weights]
    folder = config.journal_folder(digest)
    journal = NoJournal() if folder is None else Journal(folder, rank.rank, len(program))
    first = _common(rank, journal.committed)
    journal.rewind(first)

    arrived = (program.arrivals.begin * config.model.expert_bytes).tolist()

    def on_commit(batch: int) -> None:
        journal.commit(batch)
        rank.report(Phase.batch, batch + 1, len(program), arrived[batch + 1], arrived[-1])
        hooks.after_commit(batch)

    checks = truth if options.verify_before_commit else None
    machinery = assemble(rank, way, config, program, slots, spent, checks, on_commit, origin, hooks)
    machinery.lane.get_ready(first)
    if first:
        _rebuild(rank, config, job, batches, first, weights, machinery.staging)

    def run() -> Moved:
        rank.report(Phase.batch, first, len(program), arrived[first], arrived[-1])
        with no_garbage_collection():
            rank.barrier()
            begin = time.perf_counter()
            outcome = run_batches(machinery.lane, len(program), first, options.retries)
            seconds = time.perf_counter() - begin
        rank.synchronize()
        if folder is not None:
            rank.barrier()  # a rank that has all batches keeps its journal while another may lack one
        journal.close()
        traffic, events = machinery.traffic(), machinery.events()
        held = reached(job.plan, batches, job.old, outcome.committed)
        if outcome.committed < len(program):
            held = _put_down(rank, job, batches, spent, held, outcome, machinery, options.retries)
        machinery.close()
        return Moved(
            seconds=seconds,
            began=begin - origin,
            events=events,
            received_bytes=traffic.received,
            sent_bytes=traffic.sent,
            staging_bytes=spent.nbytes(config.staging_layout),
            first=first,
            committed=outcome.committed,
            batches=len(program),
            faults=outcome.faults,
            resent=outcome.resent,
            held=held,
        )

    return run


def steps_of(layers: int, layers_per_step: int | None) -> Ints:
    """[L]: the step that each layer belongs to."""
    return np.arange(layers) // (layers_per_step or layers)


def batches_of(job: Job, spent: Budget, steps: Ints, gpus_per_node: int | None) -> Batches:
    """How all ranks cut the job's plan."""
    return cut(
        job.plan, job.layers, job.slots, job.ranks,
        rows=spent.rows, at_once=spent.at_once, at_least=spent.at_least, sends_at_once=spent.sends_at_once,
        steps=steps, gpus_per_node=gpus_per_node,
    )  # fmt: skip


def _agree(rank: Rank, digest: str) -> None:
    """Raise `BadInput` unless all ranks are about to run the same batches of the same plan."""
    found = rank.gather(torch.frombuffer(bytearray(bytes.fromhex(digest)), dtype=torch.uint8))
    others = torch.nonzero((found != found[0]).any(dim=1)).flatten().tolist()
    if others:
        raise BadInput(
            f"Rank {others[0]} has another plan than rank 0, or cuts it into other batches: nothing was moved; start all "
            "ranks with the same command, code and versions."
        )


def _put_down(
    rank: Rank, job: Job, batches: Batches, spent: Budget, held: ExpertMap, outcome: Outcome, machinery: Machinery,
    retries: int,
) -> ExpertMap:  # fmt: skip
    """Put down what only staging holds; the map `[L, P]` of what every slot holds then. All ranks call it."""
    faults = [(int(receiver), Fault.of(fault)) for receiver, *fault in all_faults(rank, outcome.faults)]
    put = plan_put_down(
        job.plan, batches, held, outcome.committed,
        ranks=job.ranks, rows=spent.rows, faulty={(fault.sender, receiver) for receiver, fault in faults},
    )  # fmt: skip
    if not len(put):
        return held
    program = put.program(rank.rank, job.slots_per_rank)
    lane = machinery.another(program)
    return put.done(held, run_batches(lane, len(program), 0, retries).committed)


def _common(rank: Rank, committed: int) -> int:
    """How many batches every rank has committed."""
    value = torch.tensor([committed], dtype=torch.int64, device=rank.device)
    dist.all_reduce(value, op=dist.ReduceOp.MIN)
    return int(value.item())


def _rebuild(
    rank: Rank,
    config: UpdateStageConfig,
    job: Job,
    batches: Batches,
    committed: int,
    weights: Weights,
    staging: Staging,
) -> None:
    """Bring slots and staging to what they held after `committed` batches, from where the weights come from."""
    own = slice(rank.rank * job.slots_per_rank, (rank.rank + 1) * job.slots_per_rank)
    fill(weights, config, reached(job.plan, batches, job.old, committed)[:, own])
    for row in parked(batches, committed).tolist():
        if job.plan.dst_rank[row] == rank.rank:
            targets = [staging.tensor(int(batches.row[row]), k) for k in range(len(staging.layout.nbytes))]
            fill_expert(targets, config, int(job.plan.layer[row]), int(job.plan.logical_expert[row]))
