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
from stages.update import reference
from stages.update.config import UpdateStageConfig
from stages.update.job import Job
from stages.update.link import connect_all, measure_link
from stages.update.measured import Measured
from stages.update.progress_board import Phase
from stages.update.rank import Rank
from stages.update.weights import allocate, checksums, fill


def update_rank(rank: Rank, config: UpdateStageConfig, job: Job) -> Measured:
    """Take part in the update; every rank returns the findings of all."""
    specs = config.model.scaled_tensors()
    own = slice(rank.rank * job.slots_per_rank, (rank.rank + 1) * job.slots_per_rank)
    rank.barrier()
    spans = _Spans(rank)

    rank.report(Phase.allocate)
    weights = allocate(specs, job.layers, job.slots_per_rank, rank.device)
    with spans(Phase.fill):
        fill(weights, config, job.old[:, own])
    with spans(Phase.checksum_before):
        before = checksums(weights)
    with spans(Phase.link):
        connect_all(rank)
        link = measure_link(rank, config.link_mib(rank.backend))
    with spans(Phase.update):
        moved = reference.run(rank, job, weights, config.topology.gpus_per_node)
    _check_bytes(rank, job, moved)
    with spans(Phase.checksum_after):
        after = checksums(weights)
    rank.report(Phase.done)

    numbers = torch.tensor([moved.received_bytes, moved.sent_bytes, moved.staging_bytes])
    received, sent, staging = rank.gather(numbers).numpy().T
    times = torch.tensor([moved.seconds, *moved.layer_seconds], dtype=torch.float64)
    seconds = rank.gather(times).numpy()
    return Measured(
        before=_all_slots(rank, before),
        after=_all_slots(rank, after),
        received=received,
        sent=sent,
        staging=staging,
        seconds=seconds[:, 0],
        layer_seconds=seconds[:, 1:],
        spans=rank.gather(torch.tensor(spans.found, dtype=torch.float64)).numpy(),
        link_gb_per_s=np.array([link]),
    )


def save_update(rank: Rank, config: UpdateStageConfig, job: Job, found: Path) -> None:
    """Take part in the update; rank 0 leaves the findings in the file `found`."""
    measured = update_rank(rank, config, job)
    if rank.rank == 0:
        found.write_bytes(measured.to_bytes())


def _check_bytes(rank: Rank, job: Job, moved: reference.Moved) -> None:
    """What went over the network must be what the plan says, no more and no less."""
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
