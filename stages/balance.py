"""How even the load is: GPU loads, balancedness in every engine's definition, and a bound on what is possible."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from stages.expert_map import EMPTY, ExpertMap, replica_counts

Floats = npt.NDArray[np.float64]


def replica_load(load: Floats, expert_map: ExpertMap) -> Floats:
    """[L, P]: load of the expert in each slot over the number of its replicas; 0 in empty slots. `load`: [L, E]."""
    counts = replica_counts(expert_map, load.shape[1])
    share = load / np.maximum(counts, 1)
    slots = np.where(expert_map == EMPTY, 0, expert_map)
    return np.where(expert_map == EMPTY, 0.0, np.take_along_axis(share, slots, axis=1))


def gpu_load(load: Floats, expert_map: ExpertMap, ranks: int) -> Floats:
    """[L, R]: the sum of the replica loads over the slots of each rank. `load`: [L, E]."""
    layers = expert_map.shape[0]
    return replica_load(load, expert_map).reshape(layers, ranks, -1).sum(axis=2)


def balancedness_per_layer(gpu: Floats) -> Floats:
    """[L]: mean GPU load / max GPU load; 1 is perfect, and a layer without load counts as perfect."""
    top = gpu.max(axis=1)
    return np.where(top > 0, gpu.mean(axis=1) / np.where(top > 0, top, 1.0), 1.0)


def engine_metrics(gpu: Floats) -> dict[str, float]:
    """The balance of GPU loads [L, R] as each engine defines it (means over layers but for vLLM's ratio of sums)."""
    mean, top = gpu.mean(axis=1), gpu.max(axis=1)
    safe = np.where(mean > 0, mean, 1.0)
    return {
        "sglang_mean_over_max": float(balancedness_per_layer(gpu).mean()),
        "vllm_sum_mean_over_sum_max": float(mean.sum() / top.sum()) if top.sum() > 0 else 1.0,
        "tensorrt_llm_excess": float(np.where(mean > 0, (top - mean) / safe, 0.0).mean()),
        "ascend_max_over_mean": float(np.where(mean > 0, top / safe, 1.0).mean()),
    }


def lower_bound(load: Floats, slots: int, ranks: int) -> Floats:
    """[L]: a max GPU load that no placement can beat, whatever its replica counts and packing. `load`: [L, E].

    Two bounds hold for all: the mean GPU load, and the least M for which the replicas fit the slots, since an expert
    of load w needs at least ceil(w / M) replicas if no replica may exceed M. The second takes its values at w / k.
    """
    mean = load.sum(axis=1) / ranks
    out = mean.copy()
    for layer, row in enumerate(load):
        low, high = mean[layer], max(mean[layer], row.max(initial=0.0))
        if high <= low:
            continue
        if np.maximum(np.ceil(row / low * (1 - 1e-12)), 1).sum() <= slots:
            continue
        for _ in range(60):
            middle = (low + high) / 2
            fits = np.maximum(np.ceil(row / middle * (1 - 1e-12)), 1).sum() <= slots
            low, high = (low, middle) if fits else (middle, high)
        out[layer] = low
    return out
