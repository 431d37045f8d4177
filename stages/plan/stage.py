"""The plan stage: who sends what to whom, in which order, at what cost."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stages.contract import Progress, StageResult
from stages.expert_map import check_map
from stages.placement import Placement, read_placement
from stages.plan.config import PlanStageConfig
from stages.transfers import TransferPlan, write_transfers

if TYPE_CHECKING:
    from stages.cost import Prediction


def plan(config: PlanStageConfig, inputs: Mapping[str, Path], folder: Path, progress: Progress) -> StageResult:
    """Plan the way from the placement's current map to its new one. Writes the transfers and the traffic."""
    from stages.cost import busiest_link
    from stages.needs import needs_between
    from stages.plan.bound import lower_bound_seconds
    from stages.plan.policies import schedule
    from stages.plan.report import Report, write_traffic
    from stages.plan.traffic import count_traffic, least_cross_node_bytes

    topology, tensors, nbytes = config.topology, len(config.model.tensors), config.model.expert_bytes
    placement = read_placement(inputs["placement"])
    old, new = placement.current, placement.physical_to_logical_map
    check_map(new, placement.experts, topology.ranks, "The new map of the placement")
    check_map(old, placement.experts, topology.ranks, "The current map of the placement", complete=False)

    progress("planning transfers", 0.0)
    start = time.perf_counter()
    needs = needs_between(old, new, topology.ranks)
    unheld = len(np.unique(needs.item[~needs.held]))
    if not config.from_files:
        needs.check_held()
    needs = needs.only_held()
    found = schedule(config.policy, needs, topology, placement.layers, nbytes, tensors, config.plan.group_ops)
    transfers = found.transfers
    prediction = _predict(config, transfers, placement)
    plan_seconds = time.perf_counter() - start

    progress("counting bytes", 0.4)
    report = Report(
        config=config,
        traffic=count_traffic(transfers, topology, placement.layers),
        rounds=found.rounds,
        prediction=prediction,
        busiest=busiest_link(transfers, topology),
        lower_bound_seconds=lower_bound_seconds(needs, topology, nbytes),
        least_cross_node_bytes=least_cross_node_bytes(needs, topology, nbytes),
        from_files=unheld,
        weight_bytes=placement.layers * placement.slots_per_rank(topology.ranks) * nbytes,
    )
    progress("writing transfers", 0.6)
    files = (*write_transfers(folder, transfers), *write_traffic(folder, report))
    progress("done", 1.0)
    return StageResult(
        files=files,
        metrics={**report.metrics(), "plan_seconds": plan_seconds},
        figures=report.figures(),
        tags={"policy": config.policy, "topology": topology.name},
        note=report.note(),
    )


def _predict(config: PlanStageConfig, transfers: TransferPlan, placement: Placement) -> Prediction:
    from stages.prediction import predict

    return predict(
        transfers, placement.layers, placement.slots, config.topology, [spec.nbytes for spec in config.model.scaled_tensors()],
        executor=config.plan.executor, one_group=config.policy == "direct", staging_mib=config.plan.staging_mib,
        layers_per_step=config.plan.layers_per_step, checked=config.plan.checked,
    )  # fmt: skip
