"""Models and maps for GPU runs and benchmarks, without Hydra."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import yaml

from stages.expert_map import ExpertMap
from stages.model import ModelSpec, TensorSpec

MODELS = Path(__file__).parents[2] / "conf" / "model"


def read_model(name: str, layers: int | None = None, scale: float | None = None) -> ModelSpec:
    values = yaml.safe_load((MODELS / f"{name}.yaml").read_text(encoding="utf-8"))
    values.pop("defaults", None)
    tensors = [TensorSpec(**tensor) for tensor in values.pop("tensors")]
    chosen = {"layers": layers or values["layers"], "scale": scale or values.get("scale", 1.0)}
    return ModelSpec(**{**values, **chosen}, tensors=tensors)


def random_map(rng: np.random.Generator, layers: int, experts: int, slots: int) -> ExpertMap:
    """`[L, P]`: every expert, and random replicas in the slots that are left, in random order."""
    extra = rng.integers(0, experts, (layers, slots - experts))
    return rng.permuted(np.hstack([np.tile(np.arange(experts), (layers, 1)), extra]), axis=1)
