"""The reference executor: layer by layer, one operation per expert and tensor.

A `direct` plan goes through the API for engines, which plans as it goes; any other plan runs from its rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch

from stages.update.api import create_temp_buffers, update_expert_weights_single_layer
from stages.update.config import UpdateStageConfig
from stages.update.exchange import counted
from stages.update.job import Job
from stages.update.moved import Moved
from stages.update.progress_board import Phase
from stages.update.rank import Rank
from stages.update.rows import RowMover
from stages.update.weights import Weights, nbytes


def prepare(rank: Rank, config: UpdateStageConfig, job: Job, weights: Weights, origin: float) -> Callable[[], Moved]:
    """What turns `weights` from the job's old map to its new one when called, by all ranks."""
    move_layer, buffers = _mover(rank, job, weights, config.topology.gpus_per_node)

    def run() -> Moved:
        rank.barrier()
        clock = _LayerClock(rank)
        begin = time.perf_counter()
        with counted() as traffic:
            for layer, tensors in enumerate(weights):
                rank.report(Phase.update, layer, job.layers)
                move_layer(layer, tensors)
                clock.mark()
        rank.synchronize()
        seconds = time.perf_counter() - begin
        edges = np.cumsum([begin - origin, *clock.seconds()]).tolist()
        return Moved(
            seconds=seconds,
            events=[("layer", layer, *edge) for layer, edge in enumerate(pairwise(edges))],
            received_bytes=traffic.received,
            sent_bytes=traffic.sent,
            staging_bytes=nbytes(buffers),
            first=0,
            committed=job.layers,
            batches=job.layers,
            held=job.new,
        )

    return run


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
