"""What every rank does in an update: hold the old map's experts, hash them, move them, hash every slot again."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from stages.errors import MoesaicError
from stages.expert_map import EMPTY
from stages.functional import FunctionalProof, to_json
from stages.update import pipelined, reference
from stages.update.config import UpdateStageConfig
from stages.update.job import Job
from stages.update.lane import NO_HOOKS, Hooks
from stages.update.link import connect_all, measure_link
from stages.update.measured import Measured
from stages.update.moved import EVENTS, Moved
from stages.update.nccl_memory import registrable
from stages.update.outputs import Outputs
from stages.update.peak import Peak
from stages.update.progress_board import Phase
from stages.update.rank import Rank
from stages.update.save import save_shard
from stages.update.stopped import all_faults
from stages.update.truth import agreed_truth
from stages.update.weights import allocate, check_filled, checksums, fill, fill_slots


def update_rank(rank: Rank, config: UpdateStageConfig, job: Job, hooks: Hooks = NO_HOOKS) -> Measured:
    """Take part in the update; every rank returns the findings of all."""
    specs = config.model.scaled_tensors()
    own = slice(rank.rank * job.slots_per_rank, (rank.rank + 1) * job.slots_per_rank)
    rank.barrier()
    spans = _Spans(rank)

    rank.report(Phase.allocate)
    with registrable(rank.device):
        weights = allocate(specs, job.layers, job.slots_per_rank, rank.device)
    with spans(Phase.fill):
        fill(weights, config, job.old[:, own], lambda layers: rank.report(Phase.fill, layers, job.layers))
    with spans(Phase.checksum_before):
        before = checksums(weights)
    check_filled(config, job.old[:, own], before)
    outputs = Outputs(config, job) if config.update.functional else None
    if outputs is not None:
        rank.report(Phase.outputs_before)
        outputs_before = outputs.of(rank, weights, job.old)
    with spans(Phase.link):
        connect_all(rank)
        link = measure_link(rank, config.link_mib(rank.backend))
    names = [spec.name for spec in specs]
    all_before = _all_slots(rank, before)
    truth = agreed_truth(all_before, job.old, job.experts, names, job.ranks)
    peak = Peak(rank.device)
    with spans(Phase.compile):
        if config.update.executor == "reference":
            run = reference.prepare(rank, config, job, weights, spans.start)
        else:
            run = pipelined.prepare(rank, config, job, weights, truth, spans.start, hooks)
    with spans(Phase.update):
        moved = run()
    peak_bytes = peak.nbytes()
    _check_bytes(rank, job, moved)
    if moved.committed == moved.batches:
        fill_slots(weights, config, np.where(job.unheld, job.new, EMPTY)[:, own])
    with spans(Phase.checksum_after):
        after = checksums(weights)
    proof, complete = FunctionalProof(), moved.committed == moved.batches
    if outputs is not None and complete:
        rank.report(Phase.outputs_after)
        proof = outputs.compare(outputs_before, outputs.of(rank, weights, job.new))
    if config.update.save is not None and complete:
        rank.report(Phase.save)
        save_shard(config, job, rank.rank, weights, after)
    rank.report(Phase.done)

    numbers = torch.tensor([moved.received_bytes, moved.sent_bytes, moved.staging_bytes, peak_bytes, moved.committed])
    received, sent, staging, peaks, committed = rank.gather(numbers).numpy().T
    seconds = rank.gather(torch.tensor([moved.seconds], dtype=torch.float64)).numpy()
    events = [(EVENTS.index(what), *event) for what, *event in moved.events]
    return Measured(
        before=all_before,
        after=_all_slots(rank, after),
        received=received,
        sent=sent,
        staging=staging,
        peak=peaks,
        seconds=seconds[:, 0],
        spans=rank.gather(torch.tensor(spans.found, dtype=torch.float64)).numpy(),
        events=rank.gather_rows(np.array(events, dtype=np.float64).reshape(-1, 4)),
        faults=all_faults(rank, moved.faults),
        held=moved.held,
        steps=np.array([moved.first, committed.min(), moved.batches, moved.resent]),
        link_gb_per_s=np.array([link]),
        functional=np.frombuffer(to_json(proof), dtype=np.uint8),
    )


def save_update(rank: Rank, config: UpdateStageConfig, job: Job, found: Path) -> None:
    """Take part in the update; rank 0 leaves the findings in the file `found`."""
    measured = update_rank(rank, config, job)
    if rank.rank == 0:
        found.write_bytes(measured.to_bytes())


def _check_bytes(rank: Rank, job: Job, moved: Moved) -> None:
    """What went over the network must be what the plan says, no more and no less, if the plan was run as it stands."""
    if moved.first or moved.resent or moved.committed < moved.batches:
        return
    for verb, found, planned in (
        ("received", moved.received_bytes, job.received_bytes()[rank.rank]),
        ("sent", moved.sent_bytes, job.sent_bytes()[rank.rank]),
    ):
        if found != planned:
            raise MoesaicError(f"Rank {rank.rank} {verb} {found} bytes, its rows in transfers.parquet say {planned}.")


def _all_slots(rank: Rank, own: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """[L, P, K] from every rank's [L, slots_per_rank, K]."""
    gathered = rank.gather(torch.from_numpy(own.view(np.int64))).numpy().view(np.uint64)
    return np.concatenate(list(gathered), axis=1)


@dataclass
class _Spans:
    """Begin and end of each timed phase of this rank, in seconds since this object was made."""

    rank: Rank
    found: list[tuple[float, float]] = field(default_factory=list)
    start: float = field(default_factory=time.perf_counter)

    @contextmanager
    def __call__(self, phase: Phase) -> Iterator[None]:
        self.rank.report(phase)
        begin = time.perf_counter() - self.start
        yield
        self.rank.synchronize()
        self.found.append((begin, time.perf_counter() - self.start))
