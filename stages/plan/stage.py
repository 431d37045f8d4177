"""The plan stage: who sends what to whom, in which order, at what cost."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stages.contract import Progress, StageResult
from stages.direct import direct_transfers
from stages.expert_map import check_map
from stages.figures import heat_map, lines
from stages.placement import read_placement
from stages.plan.config import PlanStageConfig
from stages.transfers import write_transfers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from stages.plan.traffic import Traffic

MEGA = 1e6


def plan(config: PlanStageConfig, inputs: Mapping[str, Path], folder: Path, progress: Progress) -> StageResult:
    """Plan the way from the placement's current map to its new one. Writes the transfers and the traffic."""
    from stages.plan.cost import lower_bound_seconds, predicted_seconds_of_layers
    from stages.plan.traffic import count_traffic, write_traffic

    topology, tensors = config.topology, len(config.model.tensors)
    placement = read_placement(inputs["placement"])
    old, new = placement.current, placement.physical_to_logical_map
    check_map(new, placement.experts, topology.ranks, "The new map of the placement")
    check_map(old, placement.experts, topology.ranks, "The current map of the placement", complete=False)

    progress("planning transfers", 0.0)
    start = time.perf_counter()
    transfers = direct_transfers(old, new, topology.ranks, topology.gpus_per_node, config.model.expert_bytes)
    plan_seconds = time.perf_counter() - start

    progress("counting bytes", 0.4)
    traffic = count_traffic(transfers, topology, placement.layers)
    predicted = float(predicted_seconds_of_layers(transfers, topology, placement.layers, tensors).sum())
    bound = lower_bound_seconds(transfers, topology)

    progress("writing transfers", 0.6)
    files = (*write_transfers(folder, transfers), *write_traffic(folder, traffic))
    metrics = {
        "transfers": int(transfers.network.sum()),
        "moved_bytes": traffic.moved_bytes,
        "cross_node_bytes": traffic.cross_node_bytes,
        "same_node_bytes": traffic.same_node_bytes,
        "relay_bytes": traffic.relay_bytes,
        "max_rank_recv_bytes": int(traffic.recv.bytes_of_gpu.max()),
        "max_node_send_bytes": int(traffic.send.of_node(traffic.send.cross_node_bytes_of_gpu).max()),
        "predicted_seconds": predicted,
        "lower_bound_seconds": bound,
        "plan_seconds": plan_seconds,
    }
    progress("done", 1.0)
    return StageResult(
        files=files,
        metrics=metrics,
        figures=_figures(traffic),
        tags={"policy": config.plan.policy, "topology": topology.name},
        note=_note(config, traffic, metrics),
    )


def _figures(traffic: Traffic) -> dict[str, Figure]:
    from stages.plan.traffic import MATRIX_RANKS

    by_rank = traffic.topology.ranks <= MATRIX_RANKS
    unit = "rank" if by_rank else "node"
    matrix = traffic.matrix if by_rank else traffic.node_matrix
    layers = {
        "within nodes": traffic.same_node_bytes_of_layer / MEGA,
        "across nodes": traffic.cross_node_bytes_of_layer / MEGA,
    }
    return {
        "traffic": heat_map(
            matrix / MEGA, f"Bytes from {unit} to {unit}", f"receiving {unit}", f"sending {unit}", "MB"
        ),
        "layers": lines(layers, "Bytes that move, by layer", "layer", "MB"),
    }


def _note(config: PlanStageConfig, traffic: Traffic, metrics: Mapping[str, float]) -> str:
    topology, hops = config.topology, traffic.hops
    where = f"{topology.nodes} x {topology.gpus_per_node} GPUs"
    if not metrics["transfers"]:
        return f"**Nothing crosses between GPUs** on {where}; {hops['same_gpu']} slots are copied within their GPU."
    recv = traffic.recv.bytes_of_gpu
    leaving = traffic.send.of_node(traffic.send.cross_node_bytes_of_gpu)
    node = f"{_size(leaving.max())} leave node {np.argmax(leaving)}" if leaving.any() else "no byte leaves a node"
    return f"""\
**{metrics["transfers"]} transfers move {_size(metrics["moved_bytes"])}** on {where} (policy {config.plan.policy}).

| how an expert reaches its slot | slots | bytes |
|---|---|---|
| copied within its GPU | {hops["same_gpu"]} | |
| copied from a slot that receives it | {hops["free_rider"]} | |
| from its own node | {hops["same_node"]} | {_size(traffic.same_node_bytes)} |
| from another node | {hops["cross_node"]} | {_size(traffic.cross_node_bytes)} |

- busiest rank: {np.argmax(recv)} receives {_size(recv.max())} (mean {_size(recv.mean())})
- busiest node: {node}
- predicted: {metrics["predicted_seconds"]:.3g} s layer after layer, where the links allow no less than \
{metrics["lower_bound_seconds"]:.3g} s
"""


def _size(nbytes: float) -> str:
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= factor:
            return f"{nbytes / factor:.3g} {unit}"
    return f"{nbytes:.0f} bytes"
