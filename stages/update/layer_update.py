"""One layer of live weights, moved at once: the published updater's function, and what it shares with the updater."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist

from stages.direct import direct_transfers
from stages.errors import BadInput
from stages.update.exchange import exchange
from stages.update.single_layer import LayerMoves, metrics_line, moves_of_rank

logger = logging.getLogger("stages.update.api")

LOG_METRICS = "SGLANG_EXPERT_LOCATION_UPDATER_LOG_METRICS"


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
    check_rows(routed_experts_weights, num_local_physical_experts)
    if not alike(routed_experts_weights, temp_buffers):
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
    infos = move(moves, routed_experts_weights, temp_buffers, rank * num_local_physical_experts)
    if log_metrics or logs_metrics():
        logger.info(metrics_line(moves, expert_bytes(routed_experts_weights), ranks, num_gpu_per_node, rank))
    if not debug:
        return None
    return [*moves.debug_lines(), f"p2p_op_infos={infos}", f"buffer2weight_copy_infos={moves.copies}"]


def create_temp_buffers(sample_tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Uninitialised tensors like those given, where what is received waits until the whole layer has arrived."""
    return [torch.empty_like(tensor, requires_grad=False) for tensor in sample_tensors]


def move(
    moves: LayerMoves, weights: Sequence[torch.Tensor], buffers: Sequence[torch.Tensor], first_slot: int
) -> list[tuple[int, list[dist.P2POp]]]:
    """Carry `moves` out, one op per expert and tensor in a single batch; the ops per logical expert.

    Rows travel as bytes, since neither gloo nor NCCL sends every dtype.
    """
    held, staged = [rows_as_bytes(t) for t in weights], [rows_as_bytes(t) for t in buffers]
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


def rows_as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """[slots_per_rank, bytes]: the memory of `tensor` as uint8."""
    row = math.prod(tensor.shape[1:])
    try:
        return tensor.detach().view(tensor.shape[0], row).view(torch.uint8)
    except RuntimeError:
        raise BadInput(
            f"A weight of shape {list(tensor.shape)} has strides {list(tensor.stride())}; "
            "each of its rows must be contiguous."
        ) from None


def check_rows(weights: Sequence[torch.Tensor], slots_per_rank: int, where: str = "") -> None:
    if any(tensor.dim() == 0 or tensor.shape[0] != slots_per_rank for tensor in weights):
        raise BadInput(
            f"{where}routed_experts_weights have the shapes {_shapes(weights)}; every tensor must have "
            f"num_local_physical_experts={slots_per_rank} rows."
        )


def alike(weights: Sequence[torch.Tensor], buffers: Sequence[torch.Tensor]) -> bool:
    described = [[(tensor.shape, tensor.dtype, tensor.device) for tensor in tensors] for tensors in (weights, buffers)]
    return described[0] == described[1]


def _shapes(tensors: Sequence[torch.Tensor]) -> list[list[int]]:
    return [list(tensor.shape) for tensor in tensors]


def expert_bytes(weights: Sequence[torch.Tensor]) -> int:
    return sum(tensor.nbytes // tensor.shape[0] for tensor in weights)


def _one_layer(expert_map: list[int]) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    return np.array([expert_map], dtype=np.int64)


def logs_metrics() -> bool:
    return os.environ.get(LOG_METRICS, "").lower() in ("1", "true")
