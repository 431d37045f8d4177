"""The config of the plan stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from stages.errors import BadInput
from stages.model import ModelSpec
from stages.topology import Topology
from stages.weight_source import FROM_FILES

POLICIES = ("auto", "direct", "relay")
EXECUTORS = ("reference", "pipelined")


@dataclass
class PlanOptions:
    """How experts travel, and what is known of the update that will carry the plan out.

    policy:    direct: each needing rank receives from a holder, with no rank in between; relay: an expert crosses to a
               node once and spreads inside; auto: relay where there is more than one node
    group_ops: the most operations (sends and receives) of a rank in one round, where that can be: large groups have
               hung engines
    executor:  whose time is predicted
    staging_mib: what a rank has to stage what arrives, which decides the batches of the pipelined executor
    checked:   whether the pipelined executor hashes what arrives before it overwrites a slot
    layers_per_step: so many layers the pipelined executor is done with before the next ones begin; null: all
    weights:   where the weights come from: experts that no rank holds can come from files alone
    """

    policy: str = "auto"
    group_ops: int = 64
    executor: str = "reference"
    staging_mib: float = 1024.0
    checked: bool = True
    layers_per_step: int | None = None
    weights: str = "synthetic"

    def __post_init__(self) -> None:
        for key, allowed in (("policy", POLICIES), ("executor", EXECUTORS)):
            if getattr(self, key) not in allowed:
                followed = " (which follows update.executor)" if key == "executor" else ""
                raise BadInput(
                    f"plan.{key}={getattr(self, key)}{followed} is not known; allowed are {', '.join(allowed)}."
                )
        if self.group_ops < 1:
            raise BadInput(f"plan.group_ops={self.group_ops} is not possible: it must be at least 1.")
        if not self.staging_mib > 0:
            raise BadInput(
                f"plan.staging_mib={self.staging_mib} (which follows update.staging_mib) is not possible: it must be above 0."
            )
        if self.layers_per_step is not None and self.layers_per_step < 1:
            raise BadInput(
                f"plan.layers_per_step={self.layers_per_step} (which follows update.layers_per_step) is not possible: it "
                "must be at least 1."
            )


@dataclass
class PlanStageConfig:
    """Layers and experts come with the placement; of the model only the tensors of an expert matter."""

    plan: PlanOptions
    model: ModelSpec
    topology: Topology

    @property
    def policy(self) -> str:
        """`plan.policy` without `auto`."""
        if self.plan.policy == "auto":
            return "relay" if self.topology.nodes > 1 else "direct"
        return self.plan.policy

    @property
    def from_files(self) -> bool:
        """Whether experts that no rank holds can be read from files."""
        return self.plan.weights in FROM_FILES

    def key_config(self) -> Mapping[str, object]:
        topology = asdict(self.topology)
        plan: dict[str, object] = {
            "policy": self.policy,
            "group_ops": self.plan.group_ops,
            "executor": self.plan.executor,
            "from_files": self.from_files,
        }
        if self.plan.executor == "pipelined":
            for name in ("staging_mib", "checked", "layers_per_step"):
                plan[name] = getattr(self.plan, name)
        return {
            "plan": plan,
            "model": {"tensors": [spec.nbytes for spec in self.model.scaled_tensors()]},
            "topology": {name: topology[name] for name in ("nodes", "gpus_per_node", "rails", "links", "device")},
        }
