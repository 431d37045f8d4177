"""The reference executor: layer by layer, one operation per expert and tensor.

A `direct` plan goes through the API for engines, which plans as it goes; any other plan runs from its rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from stages.update.api import create_temp_buffers, update_expert_weights_single_layer
from stages.update.exchange import counted
from stages.update.job import Job
from stages.update.progress_board import Phase
from stages.update.rank import Rank
from stages.update.rows import RowMover
from stages.update.weights import Weights, nbytes


@dataclass(frozen=True)
class Moved:
    """What one rank did. `seconds`: from a barrier to its last commit, device-synchronised; `layer_seconds`: `[L]`."""

    seconds: float
    layer_seconds: list[float]
    received_bytes: int
    sent_bytes: int
    staging_bytes: int


def run(rank: Rank, job: Job, weights: Weights, gpus_per_node: int) -> Moved:
    """Turn `weights` from the job's old map to its new one. All ranks call it."""
    move_layer, buffers = _mover(rank, job, weights, gpus_per_node)
    rank.barrier()
    clock = _LayerClock(rank)
    begin = time.perf_counter()
    with counted() as traffic:
        for layer, tensors in enumerate(weights):
            rank.report(Phase.update, layer)
            move_layer(layer, tensors)
            clock.mark()
    rank.synchronize()
    seconds = time.perf_counter() - begin
    return Moved(seconds, clock.seconds(), traffic.received, traffic.sent, nbytes(buffers))


def _mover(
    rank: Rank, job: Job, weights: Weights, gpus_per_node: int
) -> tuple[Callable[[int, list[torch.Tensor]], None], list[torch.Tensor]]:
    """What moves one layer, and the temporary buffers that it uses."""
    if not job.direct:
        mover = RowMover(job, rank.rank, weights[0])
        return mover.move, mover.staging
    buffers = create_temp_buffers(weights[0])

    def move_layer(layer: int, tensors: list[torch.Tensor]) -> None:
        update_expert_weights_single_layer(
            tensors,
            buffers,
            job.old[layer].tolist(),
            job.new[layer].tolist(),
            num_local_physical_experts=job.slots_per_rank,
            num_gpu_per_node=gpus_per_node,
            rank=rank.rank,
            world_size=rank.ranks,
        )

    return move_layer, buffers


class _LayerClock:
    """Seconds between marks; on a GPU by its own clock, so that measuring does not hold it up."""

    def __init__(self, rank: Rank) -> None:
        self._on_gpu = rank.device.type == "cuda"
        self._events: list[torch.cuda.Event] = []
        self._times: list[float] = []
        self.mark()

    def mark(self) -> None:
        if self._on_gpu:
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record()
            self._events.append(event)
        else:
            self._times.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Call when the device is synchronised."""
        if self._on_gpu:
            return [a.elapsed_time(b) / 1e3 for a, b in pairwise(self._events)]
        return np.diff(self._times).tolist()
