"""The Python API for engines: move the expert weights of live layers from one map to another.

    set_global_expert_location_metadata(ExpertLocationMetadata(physical_to_logical_map, ep_size))
    updater = ExpertLocationUpdater()
    updater.update(routed_experts_weights_of_layer, new_expert_location_metadata, nnodes, rank)

Wherever anything crosses between ranks, the default process group of `torch.distributed` must exist, its ranks those that
the slots divide over, and with NCCL every rank must have joined a collective of it before (NCCL connects then; a rank
without transfers in the first layer would be missed). All ranks call with the same maps and layers. On GPUs the work is
queued on the current stream and not waited for.
"""

from __future__ import annotations

import logging
import math
import os
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
from stages.update.exchange import exchange
from stages.update.live import LIVE, LiveLayers, live_rank, update_layers
from stages.update.metadata import (
    ExpertLocationMetadata,
    get_global_expert_location_metadata,
    set_global_expert_location_metadata,
)
from stages.update.single_layer import LayerMoves, metrics_line, moves_of_rank

__all__ = [
    "ExpertLocationMetadata",
    "ExpertLocationUpdater",
    "create_temp_buffers",
    "get_global_expert_location_metadata",
    "set_global_expert_location_metadata",
    "update_expert_weights_single_layer",
]

logger = logging.getLogger(__name__)

LOG_METRICS = "SGLANG_EXPERT_LOCATION_UPDATER_LOG_METRICS"


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
            weights = [[_rows_as_bytes(t) for t in routed_experts_weights_of_layer[layer]] for layer in layer_ids]
            self._go_on(LiveLayers(layer_ids, weights, old_maps, new_maps, ranks, nnodes), rank, new)
            return
        plan = direct_transfers(old_maps, new_maps, ranks, ranks // nnodes, 0, layer_ids=layer_ids)
        if self._pipelined and dist.is_initialized():
            weights = [[_rows_as_bytes(t) for t in routed_experts_weights_of_layer[layer]] for layer in layer_ids]
            layers = LiveLayers(layer_ids, weights, old_maps, new_maps, ranks, nnodes)
            self._move_in_batches(layers, rank, current)
            if _logs_metrics():
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
            if not _alike(weights, buffers):
                buffers = create_temp_buffers(weights)
            rows = plan.select(np.arange(begin[index], begin[index + 1]))
            moves = moves_of_rank(rows, old_maps[index].tolist(), new_maps[index].tolist(), rank, slots_per_rank)
            _move(moves, weights, buffers, rank * slots_per_rank)
            if _logs_metrics():
                logger.info(metrics_line(moves, _expert_bytes(weights), ranks, ranks // nnodes, rank))
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
        logger.info(metrics_line(moves, _expert_bytes(tensors), len(old) // slots_per_rank, gpus_per_node, rank))


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
        _check_rows(weights_of_layer[layer_id], current.num_local_physical_experts, f"layer {layer_id}: ")
    return layer_ids


def update_expert_weights_single_layer(
    routed_experts_weights: Sequence[torch.Tensor],
    temp_buffers: Sequence[torch.Tensor],
    old_physical_to_logical_map: list[int],
    new_physical_to_logical_map: list[int],
    num_local_physical_experts: int,
    num_gpu_per_node: int,
    rank: int,
    world_size: int | None = None,
    debug: bool = False,
    log_metrics: bool = False,
) -> list[str] | None:
    """Move the weights of one layer; with `debug`, return what was decided, one string a decision.

    Weights and `temp_buffers` (`create_temp_buffers`) are tensors `[num_local_physical_experts, …]`, the maps lists
    `[P]`. The plan follows from the two maps alone, so that all ranks find the same without talking.
    """
    old, new = old_physical_to_logical_map, new_physical_to_logical_map
    for name, value in (("old_physical_to_logical_map", old), ("new_physical_to_logical_map", new)):
        if not isinstance(value, list):
            raise BadInput(f"{name} is a {type(value).__name__}; a list was expected.")
    _check_rows(routed_experts_weights, num_local_physical_experts)
    if not _alike(routed_experts_weights, temp_buffers):
        raise BadInput(
            f"temp_buffers {_shapes(temp_buffers)} are not like routed_experts_weights "
            f"{_shapes(routed_experts_weights)}; make them with create_temp_buffers."
        )
    ranks = len(old) // num_local_physical_experts if world_size is None else world_size
    if len(old) != ranks * num_local_physical_experts or not 0 <= rank < ranks:
        raise BadInput(
            f"{len(old)} slots with num_local_physical_experts={num_local_physical_experts} do not fit "
            f"world_size={world_size} and rank={rank}."
        )

    plan = direct_transfers(_one_layer(old), _one_layer(new), ranks, num_gpu_per_node, 0)
    moves = moves_of_rank(plan, old, new, rank, num_local_physical_experts)
    infos = _move(moves, routed_experts_weights, temp_buffers, rank * num_local_physical_experts)
    if log_metrics or _logs_metrics():
        logger.info(metrics_line(moves, _expert_bytes(routed_experts_weights), ranks, num_gpu_per_node, rank))
    if not debug:
        return None
    return [*moves.debug_lines(), f"p2p_op_infos={infos}", f"buffer2weight_copy_infos={moves.copies}"]


def create_temp_buffers(sample_tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Uninitialised tensors like those given, where what is received waits until the whole layer has arrived."""
    return [torch.empty_like(tensor, requires_grad=False) for tensor in sample_tensors]


def _move(
    moves: LayerMoves, weights: Sequence[torch.Tensor], buffers: Sequence[torch.Tensor], first_slot: int
) -> list[tuple[int, list[dist.P2POp]]]:
    """Carry `moves` out, one op per expert and tensor in a single batch; the ops per logical expert.

    Rows travel as bytes, since neither gloo nor NCCL sends every dtype.
    """
    held, staged = [_rows_as_bytes(t) for t in weights], [_rows_as_bytes(t) for t in buffers]
    for source, slot in moves.asides:
        for rows, stage in zip(held, staged, strict=True):
            stage[slot - first_slot].copy_(rows[source - first_slot])
    infos = [
        (
            expert,
            [
                dist.P2POp(dist.isend, rows[op.slot - first_slot], op.peer)
                if op.direction == "isend"
                else dist.P2POp(dist.irecv, stage[op.slot - first_slot], op.peer)
                for op in ops
                for rows, stage in zip(held, staged, strict=True)
            ],
        )
        for expert, ops in moves.ops
    ]
    exchange([op for _, ops in infos for op in ops])
    for source, slot in moves.copies:
        for rows, stage in zip(held, staged, strict=True):
            rows[slot - first_slot].copy_(stage[source - first_slot])
    return infos


def _rows_as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """[slots_per_rank, bytes]: the memory of `tensor` as uint8."""
    row = math.prod(tensor.shape[1:])
    try:
        return tensor.detach().view(tensor.shape[0], row).view(torch.uint8)
    except RuntimeError:
        raise BadInput(
            f"A weight of shape {list(tensor.shape)} has strides {list(tensor.stride())}; "
            "each of its rows must be contiguous."
        ) from None


def _check_rows(weights: Sequence[torch.Tensor], slots_per_rank: int, where: str = "") -> None:
    if any(tensor.dim() == 0 or tensor.shape[0] != slots_per_rank for tensor in weights):
        raise BadInput(
            f"{where}routed_experts_weights have the shapes {_shapes(weights)}; every tensor must have "
            f"num_local_physical_experts={slots_per_rank} rows."
        )


def _alike(weights: Sequence[torch.Tensor], buffers: Sequence[torch.Tensor]) -> bool:
    described = [[(tensor.shape, tensor.dtype, tensor.device) for tensor in tensors] for tensors in (weights, buffers)]
    return described[0] == described[1]


def _shapes(tensors: Sequence[torch.Tensor]) -> list[list[int]]:
    return [list(tensor.shape) for tensor in tensors]


def _expert_bytes(weights: Sequence[torch.Tensor]) -> int:
    return sum(tensor.nbytes // tensor.shape[0] for tensor in weights)


def _one_layer(expert_map: list[int]) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    return np.array([expert_map], dtype=np.int64)


def _logs_metrics() -> bool:
    return os.environ.get(LOG_METRICS, "").lower() in ("1", "true")
