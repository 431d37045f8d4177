"""The audit of a placement: is it complete, and is it worth what was said of it under the loads?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from stages import paths
from stages.balance import balancedness_per_layer, gpu_load
from stages.errors import BadInput
from stages.expert_map import check_map, duplicate_replicas, moved_slots
from stages.gpu_balance import read_gpu_balance
from stages.load import read_load
from stages.moves import moves_between, write_moves
from stages.place.config import PlaceStageConfig
from stages.place.report import optimality_gap
from stages.placement import Placement, read_placement, write_placement
from stages.rederived import TOLERANCE, Rederived


def rederive(
    config: PlaceStageConfig, inputs: Mapping[str, Path], folder: Path, metrics: Mapping[str, float]
) -> Rederived:
    """All metrics but what the solver would have made of other loads; what it proved is taken from it."""
    out = Rederived(metrics)
    placement = read_placement(folder / paths.PLACEMENT)
    load = read_load(inputs["load"])
    world = config.topology.ranks
    frame = placement.current, placement.physical_to_logical_map
    try:
        check_map(placement.physical_to_logical_map, load.experts, world, paths.PLACEMENT)
        check_map(placement.current, load.experts, world, f"The current map of {paths.PLACEMENT}", complete=False)
    except BadInput as error:
        out.wrong.append(str(error).rstrip("."))
        return out
    if not out.must(
        placement.layers == load.layers and placement.experts == load.experts,
        f"{paths.PLACEMENT} is of {placement.layers} layers and {placement.experts} experts, and the loads are of "
        f"{load.layers} layers and {load.experts} experts",
    ):
        return out
    out.metrics_of(_worth(placement, load.total(), world))
    out.metric("moved_slots", moved_slots(*frame, load.experts, world))
    out.same_files(folder, lambda target: write_placement(target, placement))
    moves = moves_between(*frame, load.experts, world, world)
    out.same_files(folder, lambda target: write_moves(target, moves))
    out.done.append(
        f"the balance of {placement.layers} × {placement.deployed.shape[1]} slots, and {len(moves):,} moves"
    )
    return out


def _balance(out: Rederived, folder: Path, placement: Placement, total: np.ndarray, world: int) -> None:
    """What the stage wrote of GPU loads, and the gap that follows from the bound it proved."""
    balance = read_gpu_balance(folder / paths.GPU_BALANCE)
    ranks = world if placement.shape is None else placement.shape[1]
    after = gpu_load(total, placement.deployed, ranks)
    same = balance.after.shape == after.shape and np.allclose(balance.after, after, rtol=TOLERANCE)
    out.must(same, f"{paths.GPU_BALANCE} has other GPU loads than the placement gives")
    out.metric("optimality_gap", optimality_gap(balance.after, balance.bound))


def _worth(placement: Placement, total: np.ndarray, world: int) -> dict[str, float]:
    """Of the map as it is deployed, which is smaller than the frame where GPUs join or leave."""
    new = placement.deployed
    ranks = world if placement.shape is None else placement.shape[1]
    per_layer = balancedness_per_layer(gpu_load(total, new, ranks))
    worth = {
        "balancedness": float(per_layer.mean()),
        "balancedness_worst_layer": float(per_layer.min()),
        "duplicate_replicas": float(duplicate_replicas(new, placement.experts, ranks)),
    }
    if placement.shape is None:
        worth["balancedness_before"] = float(balancedness_per_layer(gpu_load(total, placement.current, world)).mean())
        worth["redundant_experts_used"] = float(new.shape[1] - placement.experts)
    return worth
