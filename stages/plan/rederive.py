"""The audit of a plan: carried out on the old map, does it give the new one, and does it move what was said?"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from stages import paths
from stages.expert_map import EMPTY
from stages.placement import read_placement
from stages.plan.config import PlanStageConfig
from stages.plan.replayed import replay_faults
from stages.plan.traffic import count_traffic
from stages.rederived import Rederived
from stages.transfers import read_transfers, write_transfers


def rederive(
    config: PlanStageConfig, inputs: Mapping[str, Path], folder: Path, metrics: Mapping[str, float]
) -> Rederived:
    """The replay, the traffic counted again, and all metrics but those that speak of how the plan was found."""
    out = Rederived(metrics)
    placement = read_placement(inputs["placement"])
    transfers = read_transfers(folder / paths.TRANSFERS)
    topology, nbytes = config.topology, config.model.expert_bytes
    out.wrong += replay_faults(transfers, placement.current, placement.physical_to_logical_map, topology)
    out.must(bool((transfers.bytes == nbytes).all()), f"not every transfer is of the {nbytes:,} bytes of an expert")
    filled = int((placement.physical_to_logical_map != EMPTY).sum())
    out.done.append(f"{len(transfers):,} rows replayed on the old map, which give the new one ({filled:,} slots)")
    if out.wrong:
        return out
    traffic = count_traffic(transfers, topology, placement.layers)
    told = json.loads((folder / paths.TRAFFIC).read_text(encoding="utf-8"))
    for name, value in traffic.as_json().items():
        out.must(told.get(name) == value, f"{name} in {paths.TRAFFIC} is not what the rows of the plan come to")
    out.metrics_of(
        {
            "transfers": int(transfers.network.sum()),
            "moved_bytes": traffic.moved_bytes,
            "cross_node_bytes": traffic.cross_node_bytes,
            "same_node_bytes": traffic.same_node_bytes,
            "relay_bytes": traffic.relay_bytes,
            "max_rank_recv_bytes": int(traffic.recv.bytes_of_gpu.max()),
            "rank_weight_bytes": placement.layers * placement.slots_per_rank(topology.ranks) * nbytes,
            "rounds": sum(told["rounds_of_layer"]),
            "predicted_seconds": told["predicted"]["seconds"],
            "lower_bound_seconds": told["predicted"]["lower_bound_seconds"],
        }
    )
    out.same_files(folder, lambda target: write_transfers(target, transfers))
    out.done.append("the bytes between GPUs")
    return out
