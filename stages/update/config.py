"""Config of the update stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from stages.errors import BadInput
from stages.model import ModelSpec
from stages.topology import Topology
from stages.update import machine

EXECUTORS = ("reference",)
BACKENDS = ("auto", "gloo", "nccl")
RANKS = ("auto", "local", "attached")
WEIGHTS = ("synthetic",)
DEFAULT_LINK_MIB = {"gloo": 16, "nccl": 1024}
MAX_TIMEOUT_SECONDS = 1e6


@dataclass
class UpdateOptions:
    """How the plan is carried out, and on what.

    executor:        what moves the weights
    backend:         `auto` takes NCCL where there is a GPU for every rank, gloo otherwise
    ranks:           `local` ranks are started on this host, `attached` ones were started by torchrun or Slurm
    weights:         where the weights come from
    timeout_seconds: how long a rank waits for its peers before it fails
    oversubscribe:   let NCCL ranks share GPUs, over sockets: for tests, not for speed
    link_mib:        size of the message that the link is measured with; null: 1024 with NCCL, 16 with gloo
    """

    executor: str = "reference"
    backend: str = "auto"
    ranks: str = "auto"
    weights: str = "synthetic"
    timeout_seconds: float = 120.0
    oversubscribe: bool = False
    link_mib: int | None = None

    def __post_init__(self) -> None:
        allowed = {"executor": EXECUTORS, "backend": BACKENDS, "ranks": RANKS, "weights": WEIGHTS}
        for key, values in allowed.items():
            if getattr(self, key) not in values:
                raise BadInput(f"update.{key}={getattr(self, key)} is not known; allowed are {', '.join(values)}.")
        if not 0 < self.timeout_seconds < MAX_TIMEOUT_SECONDS:
            raise BadInput(
                f"update.timeout_seconds={self.timeout_seconds} is not possible: it must be above 0 and below {MAX_TIMEOUT_SECONDS:g}."
            )
        if self.link_mib is not None and self.link_mib < 1:
            raise BadInput(f"update.link_mib={self.link_mib} is not possible: it must be at least 1.")


@dataclass
class UpdateStageConfig:
    update: UpdateOptions
    model: ModelSpec
    topology: Topology
    seed: int = 0

    def machine(self) -> machine.Machine:
        """What the ranks of this config run on. Raises `BadInput` if this machine cannot run them."""
        options = self.update
        return machine.find(options.backend, options.ranks, options.oversubscribe, self.topology.ranks)

    def link_mib(self, backend: str) -> int:
        return self.update.link_mib or DEFAULT_LINK_MIB[backend]

    def key_config(self) -> Mapping[str, object]:
        options = self.update
        return {
            "update": {
                "executor": options.executor,
                "weights": options.weights,
                "oversubscribe": options.oversubscribe,
                "link_mib": self.link_mib(self.machine().backend),
            },
            "model": {"tensors": [[t.name, t.shape, t.dtype] for t in self.model.scaled_tensors()]},
            "topology": {"nodes": self.topology.nodes, "gpus_per_node": self.topology.gpus_per_node},
            "seed": self.seed,
        }

    def environment(self) -> Mapping[str, object]:
        return self.machine().facts()

    def cacheable(self) -> bool:
        """Synthetic weights are made anew in every update, so that nothing is lost when one is skipped."""
        return self.update.weights == "synthetic"
