"""Models and maps for GPU runs and benchmarks, without Hydra."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import yaml

from stages.collect.samples import SAMPLES
from stages.expert_map import ExpertMap
from stages.load import LoadStats
from stages.model import ModelSpec, TensorSpec
from stages.solvers.options import PlaceOptions
from stages.solvers.solver import solver_of
from stages.topology import Topology

MODELS = Path(__file__).parents[2] / "conf" / "model"
SEARCH_STEPS = 40


def read_model(name: str, layers: int | None = None, scale: float | None = None) -> ModelSpec:
    values = yaml.safe_load((MODELS / f"{name}.yaml").read_text(encoding="utf-8"))
    values.pop("defaults", None)
    tensors = [TensorSpec(**tensor) for tensor in values.pop("tensors")]
    chosen = {"layers": layers or values["layers"], "scale": scale or values.get("scale", 1.0)}
    return ModelSpec(**{**values, **chosen}, tensors=tensors)


def layers_that_fit(model: ModelSpec, slots_per_rank: int, free_bytes: int) -> int:
    """How many of the model's layers `free_bytes` hold the weights of, on one rank."""
    assert model.layers is not None
    return max(1, min(model.layers, free_bytes // (slots_per_rank * model.expert_bytes)))


def random_map(rng: np.random.Generator, layers: int, experts: int, slots: int) -> ExpertMap:
    """`[L, P]`: every expert, and random replicas in the slots that are left, in random order."""
    extra = rng.integers(0, experts, (layers, slots - experts))
    return rng.permuted(np.hstack([np.tile(np.arange(experts), (layers, 1)), extra]), axis=1)


def skewed_load(rng: np.random.Generator, layers: int, experts: int) -> npt.NDArray[np.int64]:
    """`[L, E]`: loads as skewed as those of gpt-oss-20b. Each layer has the quantiles of one of its, in random order."""
    with np.load(SAMPLES["gpt_oss_20b"].path, allow_pickle=False) as file:
        real = np.sort(file["logical_count"].sum(axis=0), axis=1)
    at = np.linspace(0, real.shape[1] - 1, experts)
    load = np.stack([np.interp(at, np.arange(real.shape[1]), real[layer % len(real)]) for layer in range(layers)])
    return rng.permuted(load.astype(np.int64), axis=1)


def placed_maps(
    rng: np.random.Generator, model: ModelSpec, redundant: int, topology: Topology
) -> tuple[ExpertMap, ExpertMap]:
    """`[L, P]`, `[L, P]`: experts in order, and placed by `local_search` for skewed loads."""
    assert model.layers is not None
    assert model.experts is not None
    load = LoadStats(skewed_load(rng, model.layers, model.experts)[None])
    options = PlaceOptions(algorithm="local_search", redundant_experts=redundant, max_steps=SEARCH_STEPS)
    solver = solver_of(options, model, topology, 0, load)
    return solver.current, solver.solve(load.total()).map
