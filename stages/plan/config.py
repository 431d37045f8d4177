"""The config of the plan stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from stages.errors import BadInput
from stages.model import ModelSpec
from stages.topology import Topology

POLICIES = ("direct",)


@dataclass
class PlanOptions:
    """`policy`: how experts travel. direct: each needing rank receives from a holder, with no rank in between."""

    policy: str = "direct"

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise BadInput(f"plan.policy={self.policy} is not known; allowed are {', '.join(POLICIES)}.")


@dataclass
class PlanStageConfig:
    """Layers and experts come with the placement; of the model only the tensors of an expert matter."""

    plan: PlanOptions
    model: ModelSpec
    topology: Topology

    def key_config(self) -> Mapping[str, object]:
        return {
            "plan": {"policy": self.plan.policy},
            "model": {"expert_bytes": self.model.expert_bytes, "tensors": len(self.model.tensors)},
            "topology": {
                "nodes": self.topology.nodes,
                "gpus_per_node": self.topology.gpus_per_node,
                "links": asdict(self.topology.links),
            },
        }
