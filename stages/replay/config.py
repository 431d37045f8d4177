"""The options of `replay`, checked, and what of them can change its result."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from stages.errors import BadInput
from stages.model import ModelSpec
from stages.solvers.keys import key_of
from stages.solvers.options import PlaceOptions
from stages.topology import Topology

RULES = ("never", "once", "every", "threshold", "pays_back", "always")


@dataclass
class ReplayOptions:
    """When to place anew, before a window is served and from the windows before it.

    rules:           which to compare: never; once; every so many windows; below a threshold; pays_back, where the
                     seconds that it would have saved are more than those that the move takes; always
    every:           rule every: windows from one placement to the next
    threshold:       rule threshold: places anew after a window with a balancedness below this
    payback_windows: rule pays_back: the last windows over which the seconds saved are added up
    history:         how many of the last windows count, each as `place.load` says; null for all
    """

    rules: list[str] = field(default_factory=lambda: list(RULES))
    every: int = 8
    threshold: float = 0.8
    payback_windows: float = 8.0
    history: int | None = 8

    def __post_init__(self) -> None:
        unknown = [rule for rule in self.rules if rule not in RULES]
        if unknown:
            raise BadInput(f"replay.rules={unknown[0]} is not known; allowed are {', '.join(RULES)}.")
        if not self.rules or len(set(self.rules)) < len(self.rules):
            raise BadInput("replay.rules must name at least one rule, and none twice.")
        for key in ("every", "history"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise BadInput(f"replay.{key}={value} is not possible: it must be at least 1.")
        if not 0 <= self.threshold <= 1:
            raise BadInput(f"replay.threshold={self.threshold} is not possible: allowed are 0 to 1.")
        if not 0 < self.payback_windows < float("inf"):
            raise BadInput(f"replay.payback_windows={self.payback_windows} is not possible: it must be above 0.")


@dataclass
class ReplayStageConfig:
    """What the stage gets; of `collect`, which another stage owns, it reads `tokens_per_second` alone."""

    replay: ReplayOptions
    place: PlaceOptions
    collect: dict[str, Any]
    model: ModelSpec
    topology: Topology
    seed: int = 0

    @property
    def tokens_per_second(self) -> float:
        value = self.collect.get("tokens_per_second")
        if value is None:
            raise BadInput(
                "collect.tokens_per_second=null is not possible with replay: how fast is the deployment where all its "
                "GPUs have the same to do?"
            )
        return float(value)

    def key_config(self) -> dict[str, Any]:
        key = key_of(self.place, self.model, self.topology, self.seed)
        model = {
            "expert_bytes": self.model.expert_bytes,
            "tensors": len(self.model.tensors),
            "top_k": self.model.top_k,
            "moe_time_fraction": self.model.moe_time_fraction,
        }
        key["model"] = {**key.get("model", {}), **model}
        key["topology"] = {**key["topology"], "links": asdict(self.topology.links)}
        return key | {"replay": asdict(self.replay), "collect": {"tokens_per_second": self.tokens_per_second}}

    def external_files(self) -> dict[str, Path]:
        return self.place.files
