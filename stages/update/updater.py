"""Brings live weights from the current metadata to new one, in the ranks of an engine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from stages.direct import direct_transfers
from stages.errors import BadInput, Corruption
from stages.expert_map import ExpertMap
from stages.transfers import TransferPlan
from stages.update.background import BackgroundUpdate
from stages.update.config import EXECUTORS, UpdateOptions
from stages.update.layer_update import (
    alike,
    check_rows,
    create_temp_buffers,
    expert_bytes,
    logger,
    logs_metrics,
    move,
    rows_as_bytes,
)
from stages.update.live import LIVE, LiveLayers, live_rank, update_layers
from stages.update.metadata import ExpertLocationMetadata, get_global_expert_location_metadata
from stages.update.single_layer import metrics_line, moves_of_rank


class ExpertLocationUpdater:
    """Brings live weights to new metadata.

    `executor`: `pipelined` moves all layers of a call in batches that are checked before they are committed, and returns
    when they are; `reference` goes layer by layer. `options`: how the pipelined one works, such as `staging_mib`,
    `verify_before_commit`, `transport` (see `UpdateOptions`). With `background` a call stages as many layers as staging
    holds while the model goes on, and the next call commits them and stages the next ones, until nothing is `pending`:
    the model's stream waits for commits alone.
    """

    def __init__(
        self, executor: str = "pipelined", options: UpdateOptions | None = None, *, background: bool = False
    ) -> None:
        if background and executor != "pipelined":
            raise BadInput("background=True needs executor=pipelined.")
        self._background = background
        self._running: BackgroundUpdate | None = None
        self._waiting: list[LiveLayers] = []
        self._target: npt.NDArray[np.int64] | None = None
        if executor not in EXECUTORS:
            raise BadInput(f"executor={executor} is not known; allowed are {', '.join(EXECUTORS)}.")
        self._pipelined = executor == "pipelined"
        self._options = options or LIVE
        self._first_update = True

    def update(
        self,
        routed_experts_weights_of_layer: Mapping[int, Sequence[torch.Tensor]],
        new_expert_location_metadata: ExpertLocationMetadata,
        nnodes: int,
        rank: int,
        update_layer_ids: Sequence[int] | None = None,
    ) -> None:
        """Move the weights of the layers given (engine layer id -> tensors `[slots_per_rank, …]`), in ascending order;
        with `update_layer_ids` of these alone.

        Afterwards the current metadata says so, its tensor updated in place. Where weights arrive wrong, nothing wrong
        is kept, the metadata tells slot by slot how far the weights are, and `Corruption` says what was found: the same
        call goes on from there. Maps are checked for all layers before anything moves.
        """
        if self._first_update:
            self._first_update = False
            torch.cuda.empty_cache()
        self._commit_staged()
        current, new = _current(), new_expert_location_metadata
        if self._running is not None and self._leads_to(new):
            return
        asked = routed_experts_weights_of_layer if update_layer_ids is None else update_layer_ids
        layer_ids = _checked_layers(routed_experts_weights_of_layer, asked, current, new, nnodes)
        old_maps, new_maps = (
            metadata.physical_to_logical_map[layer_ids].cpu().numpy().astype(np.int64) for metadata in (current, new)
        )
        ranks = current.ep_size
        if self._background and dist.is_initialized():
            weights = [[rows_as_bytes(t) for t in routed_experts_weights_of_layer[layer]] for layer in layer_ids]
            self._go_on(LiveLayers(layer_ids, weights, old_maps, new_maps, ranks, nnodes), rank, new)
            return
        plan = direct_transfers(old_maps, new_maps, ranks, ranks // nnodes, 0, layer_ids=layer_ids)
        if self._pipelined and dist.is_initialized():
            weights = [[rows_as_bytes(t) for t in routed_experts_weights_of_layer[layer]] for layer in layer_ids]
            layers = LiveLayers(layer_ids, weights, old_maps, new_maps, ranks, nnodes)
            self._move_in_batches(layers, rank, current)
            if logs_metrics():
                _log_metrics(plan, weights, old_maps, new_maps, ranks // nnodes, rank)
        else:
            self._move_layer_by_layer(
                routed_experts_weights_of_layer, layer_ids, plan, old_maps, new_maps, nnodes, rank
            )

    @property
    def pending(self) -> bool:
        """Is something staged that the next call commits?"""
        return self._running is not None

    @property
    def ready(self) -> bool:
        """Has what is staged arrived on this rank, so that the next call hardly waits?"""
        return self._running is None or self._running.ready

    def _commit_staged(self) -> None:
        """What comes first in a call: the model waits for it."""
        if self._running is not None:
            done = self._running.advance()
            _current().take(done.maps, done.layer_ids)
            if self._running.done:
                self._running = None

    def _leads_to(self, new: ExpertLocationMetadata) -> bool:
        return self._target is not None and np.array_equal(self._target, new.physical_to_logical_map.cpu().numpy())

    def _go_on(self, layers: LiveLayers, rank: int, new: ExpertLocationMetadata) -> None:
        """Stage what comes next on the way to `new`."""
        if not self._leads_to(new):
            if self._running is not None:  # what is staged now leads elsewhere
                self._running.abandon()
                self._running = None
            self._target = new.physical_to_logical_map.cpu().numpy().copy()
            self._waiting = [part for part in layers.alike() if not np.array_equal(part.old, part.new)]
        if self._running is None and self._waiting:
            part = self._waiting.pop(0)
            member = live_rank(rank, part.ranks, part.weights[0][0].device)
            self._running = BackgroundUpdate(member, part, self._options)
        if self._running is None:
            self._target = None

    def _move_in_batches(self, layers: LiveLayers, rank: int, current: ExpertLocationMetadata) -> None:
        for part in layers.alike():
            member = live_rank(rank, part.ranks, part.weights[0][0].device)
            maps, why = update_layers(member, part, self._options)
            current.take(maps, part.layer_ids)
            if why:
                raise Corruption(f"{why}: the same call goes on from there.")

    def _move_layer_by_layer(
        self,
        weights_of_layer: Mapping[int, Sequence[torch.Tensor]],
        layer_ids: list[int],
        plan: TransferPlan,
        old_maps: ExpertMap,
        new_maps: ExpertMap,
        nnodes: int,
        rank: int,
    ) -> None:
        current = _current()
        ranks, slots_per_rank = current.ep_size, current.num_local_physical_experts
        begin = np.searchsorted(plan.layer, np.arange(len(layer_ids) + 1))
        buffers: list[torch.Tensor] = []
        for index, layer_id in enumerate(layer_ids):
            weights = weights_of_layer[layer_id]
            if not alike(weights, buffers):
                buffers = create_temp_buffers(weights)
            rows = plan.select(np.arange(begin[index], begin[index + 1]))
            moves = moves_of_rank(rows, old_maps[index].tolist(), new_maps[index].tolist(), rank, slots_per_rank)
            move(moves, weights, buffers, rank * slots_per_rank)
            if logs_metrics():
                logger.info(metrics_line(moves, expert_bytes(weights), ranks, ranks // nnodes, rank))
            current.take(new_maps[index : index + 1], [layer_id])


def _log_metrics(
    plan: TransferPlan,
    weights: Sequence[Sequence[torch.Tensor]],
    old_maps: ExpertMap,
    new_maps: ExpertMap,
    gpus_per_node: int,
    rank: int,
) -> None:
    """One line a layer."""
    for index, tensors in enumerate(weights):
        rows = plan.select(np.flatnonzero(plan.layer == index))
        old, new, slots_per_rank = old_maps[index].tolist(), new_maps[index].tolist(), tensors[0].shape[0]
        moves = moves_of_rank(rows, old, new, rank, slots_per_rank)
        logger.info(metrics_line(moves, expert_bytes(tensors), len(old) // slots_per_rank, gpus_per_node, rank))


def _current() -> ExpertLocationMetadata:
    current = get_global_expert_location_metadata()
    if current is None:
        raise BadInput("There is no current expert location metadata; call set_global_expert_location_metadata.")
    return current


def _checked_layers(
    weights_of_layer: Mapping[int, Sequence[torch.Tensor]],
    asked: Iterable[int],
    current: ExpertLocationMetadata,
    new: ExpertLocationMetadata,
    nnodes: int,
) -> list[int]:
    """The ids of the layers `asked` for, ascending; raises `BadInput` where they cannot be brought to `new`."""
    current.check_successor(new)
    if nnodes < 1 or current.ep_size % nnodes:
        raise BadInput(f"ep_size={current.ep_size} ranks do not divide evenly over nnodes={nnodes}.")
    layer_ids = sorted(asked)
    if missing := [layer_id for layer_id in layer_ids if layer_id not in weights_of_layer]:
        raise BadInput(f"update_layer_ids names layer {missing[0]}, whose weights are not given.")
    if layer_ids and not 0 <= layer_ids[0] <= layer_ids[-1] < current.num_layers:
        raise BadInput(f"Layer ids {layer_ids} are not all within the {current.num_layers} layers of the metadata.")
    for layer_id in layer_ids:
        check_rows(weights_of_layer[layer_id], current.num_local_physical_experts, f"layer {layer_id}: ")
    return layer_ids
