"""The config of the verify stage."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from stages.model import ModelSpec


@dataclass
class VerifyOptions:
    """`source`: make every weight anew from where it came from and compare with that, too; it takes the most time."""

    source: bool = True


@dataclass
class VerifyStageConfig:
    """What the verify stage is given; `seed` is that of synthetic weights."""

    verify: VerifyOptions
    model: ModelSpec
    seed: int

    def key_config(self) -> dict[str, Any]:
        """All else that decides the verdict, machine and backend among it, comes with the inputs."""
        key: dict[str, Any] = {
            "verify": {"source": self.verify.source},
            "model": {"tensors": [asdict(tensor) for tensor in self.model.scaled_tensors()]},
        }
        if self.verify.source:
            key["seed"] = self.seed
        return key
