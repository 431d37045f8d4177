"""What the plan stage tells of a plan: numbers, figures, a note, and traffic.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stages import paths
from stages.cost import Prediction
from stages.figures import heat_map, lines
from stages.plan.config import PlanStageConfig
from stages.plan.schedule import RoundCount
from stages.plan.traffic import MATRIX_RANKS, Traffic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MEGA = 1e6


@dataclass(frozen=True)
class Report:
    """`busiest`: name and seconds of the busiest link. `from_files`: experts of layers that no rank holds.
    `weight_bytes`: of the experts on one GPU."""

    config: PlanStageConfig
    traffic: Traffic
    rounds: RoundCount
    prediction: Prediction
    busiest: tuple[str, float]
    lower_bound_seconds: float
    least_cross_node_bytes: int
    from_files: int
    weight_bytes: int

    def metrics(self) -> dict[str, float]:
        traffic = self.traffic
        send, recv = traffic.send, traffic.recv
        return {
            "transfers": sum(count for kind, count in traffic.hops.items() if kind not in ("same_gpu", "free_rider")),
            "moved_bytes": traffic.moved_bytes,
            "cross_node_bytes": traffic.cross_node_bytes,
            "same_node_bytes": traffic.same_node_bytes,
            "relay_bytes": traffic.relay_bytes,
            "max_rank_recv_bytes": int(recv.bytes_of_gpu.max()),
            "max_node_send_bytes": int(send.of_node(send.cross_node_bytes_of_gpu).max()),
            "rank_weight_bytes": self.weight_bytes,
            "rounds": int(self.rounds.rounds.sum()),
            "least_rounds": int(self.rounds.least.sum()),
            "predicted_seconds": self.prediction.seconds,
            "lower_bound_seconds": self.lower_bound_seconds,
        }

    def as_json(self) -> dict[str, object]:
        name, seconds = self.busiest
        return {
            **self.traffic.as_json(),
            "policy": self.config.policy,
            "least_cross_node_bytes": self.least_cross_node_bytes,
            "experts_from_files": self.from_files,
            "rounds_of_layer": self.rounds.rounds.tolist(),
            "least_rounds_of_layer": self.rounds.least.tolist(),
            "predicted": {
                "executor": self.prediction.executor,
                "seconds": self.prediction.seconds,
                "seconds_of_parts": self.prediction.parts.tolist(),
                "lower_bound_seconds": self.lower_bound_seconds,
                "busiest_link": name,
                "busiest_link_seconds": seconds,
            },
        }

    def figures(self) -> dict[str, Figure]:
        traffic = self.traffic
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

    def note(self) -> str:
        topology, traffic, hops, metrics = self.config.topology, self.traffic, self.traffic.hops, self.metrics()
        where = f"{topology.nodes} x {topology.gpus_per_node} GPUs"
        from_files = f"\n\n{self.from_files} experts that no GPU holds are read from files." if self.from_files else ""
        if not metrics["transfers"]:
            return (
                f"**Nothing crosses between GPUs** on {where}; {hops['same_gpu']} slots are copied within their GPU."
                + from_files
            )
        return f"""\
**{metrics["transfers"]} transfers move {_size(metrics["moved_bytes"])}** on {where} (policy {self.config.policy}).

| how an expert reaches its slot | slots | bytes |
|---|---|---|
| copied within its GPU | {hops["same_gpu"]} | |
| copied from a slot that receives it | {hops["free_rider"]} | |
| from its own node | {hops["same_node"]} | |
| from another node | {hops["cross_node"]} | |
| relayed by a GPU that just got it | {hops["relay"]} | {_size(traffic.relay_bytes)} |

{_links(self, metrics)}{from_files}
"""


def write_traffic(folder: Path, report: Report) -> tuple[str, ...]:
    paths.write_json(folder / paths.TRAFFIC, report.as_json())
    return (paths.TRAFFIC,)


def _links(report: Report, metrics: Mapping[str, float]) -> str:
    traffic, recv = report.traffic, report.traffic.recv.bytes_of_gpu
    leaving = traffic.send.of_node(traffic.send.cross_node_bytes_of_gpu)
    node = f"{_size(leaving.max())} leave node {np.argmax(leaving)}" if leaving.any() else "no byte leaves a node"
    name, seconds = report.busiest
    parts = "batches" if report.prediction.executor == "pipelined" else "layers"
    return f"""\
- within nodes: {_size(traffic.same_node_bytes)}; across nodes: {_size(traffic.cross_node_bytes)}, \
where no plan needs less than {_size(report.least_cross_node_bytes)}
- busiest rank: {np.argmax(recv)} receives {_size(recv.max())} (mean {_size(recv.mean())})
- busiest node: {node}
- busiest link: {name}, {seconds:.3g} s at its full speed
- rounds: {metrics["rounds"]} over all layers, where no schedule has less than {metrics["least_rounds"]}
- predicted: {metrics["predicted_seconds"]:.3g} s by the {report.prediction.executor} executor in \
{len(report.prediction.parts)} {parts}, where the links allow no less than {metrics["lower_bound_seconds"]:.3g} s"""


def _size(nbytes: float) -> str:
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= factor:
            return f"{nbytes / factor:.3g} {unit}"
    return f"{nbytes:.0f} bytes"
