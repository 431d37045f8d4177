"""The config of the verify stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from stages.contract import Content
from stages.model import ModelSpec
from stages.weight_source import FROM_FILES, ExpertSource, open_source


@dataclass
class VerifyOptions:
    """What is compared besides the slots with the old holders, and the replicas with each other.

    source:       make every weight anew from where it came from and compare with that, too; it takes the most time
    weights:      where the weights came from, as in the config of the update
    weights_path: the folder that they came from, likewise
    functional:   also demand that the experts make the same of random tokens as before the update
    """

    source: bool = True
    weights: str = "synthetic"
    weights_path: str | None = None
    functional: bool = False


@dataclass
class VerifyStageConfig:
    """What the verify stage is given; `seed` is that of synthetic weights."""

    verify: VerifyOptions
    model: ModelSpec
    seed: int

    @cached_property
    def weight_source(self) -> ExpertSource | None:
        """The files to recompute the truth from, if it lies in files. Raises `BadInput` if there are none."""
        options = self.verify
        if not options.source or options.weights not in FROM_FILES or options.weights_path is None:
            return None
        return open_source(options.weights, Path(options.weights_path).expanduser(), self.model)

    def key_config(self) -> dict[str, Any]:
        """All else that decides the verdict, machine and backend among it, comes with the inputs."""
        model: dict[str, Any] = {"tensors": [asdict(tensor) for tensor in self.model.scaled_tensors()]}
        key: dict[str, Any] = {
            "verify": {"source": self.verify.source, "functional": self.verify.functional},
            "model": model,
        }
        if self.verify.source:
            key["verify"]["weights"] = self.verify.weights
            if self.verify.weights == "synthetic":
                key["seed"] = self.seed
            else:
                model |= {"first_moe_layer": self.model.first_moe_layer, "dense_layers": self.model.dense_layers}
        return key

    def external_files(self) -> Mapping[str, Content]:
        return {} if self.weight_source is None else {"update.weights_path": self.weight_source}
