"""How even the load is: GPU loads, balancedness in every engine's definition, and a bound on what is possible."""

from __future__ import annotations

import math
from itertools import combinations_with_replacement

import numpy as np
import numpy.typing as npt

from stages.expert_map import EMPTY, ExpertMap, replica_counts

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


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


ENGINE_METRICS = {
    "sglang_mean_over_max": "SGLang: mean / max, mean of layers (1 is perfect)",
    "vllm_sum_mean_over_sum_max": "vLLM: sum of means / sum of maxima (1 is perfect)",
    "tensorrt_llm_excess": "TensorRT-LLM: (max − mean) / mean, mean of layers (0 is perfect)",
    "ascend_max_over_mean": "vLLM-Ascend: max / mean, mean of layers (1 is perfect)",
}
"""What `engine_metrics` are, in words."""


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


def lower_bound(
    load: Floats, slots: int | Ints, ranks: int, per_rank: int | Ints | None = None, reached: Floats | None = None
) -> Floats:
    """[L]: a max GPU load that no placement can beat, whatever its replica counts and packing.

    load: [L, E]. slots: how many there are, in all layers or in each [L]; per_rank: the most that a rank has of them
    (slots / ranks, rounded up, if not given). reached: [L] max GPU loads of some placement, which make it cheaper to
    look at all replica counts that could do better.

    Three bounds hold for all: the mean GPU load; the least load whose replicas fit the slots; and, where few enough
    replica counts are left that could beat what is reached, the least that a packing of any of them must have.
    """
    layers = len(load)
    slots = np.broadcast_to(slots, layers)
    per_rank = -(-slots // ranks) if per_rank is None else np.broadcast_to(per_rank, layers)
    least = np.maximum(load.sum(axis=1) / ranks, replica_fit_bound(load, slots, ranks))
    for layer, row in enumerate(load):
        top = row.sum() if reached is None else reached[layer]
        if least[layer] < top * (1 - 1e-12):
            packed = packing_bound(row, int(slots[layer]), ranks, int(per_rank[layer]), float(top))
            least[layer] = max(least[layer], packed)
    return least


def replica_fit_bound(load: Floats, slots: Ints, ranks: int) -> Floats:
    """[L]: the least M, from the mean up, for which the replicas fit the slots.

    If no replica exceeds M, an expert of load w has at least ceil(w / M) of them. M takes its values at w / k.
    """
    low = load.sum(axis=1) / ranks
    high = np.maximum(low, load.max(axis=1, initial=0.0))

    def fits(most: Floats) -> npt.NDArray[np.bool_]:
        safe = np.where(most > 0, most, 1.0)[:, None]
        return np.maximum(np.ceil(load / safe * (1 - 1e-12)), 1).sum(axis=1) <= slots

    high = np.where(fits(low), low, high)
    for _ in range(60):
        middle = (low + high) / 2
        enough = fits(middle)
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    return low


MOST_COUNTS = 4096
"""Replica counts of one layer that `packing_bound` looks at; where there are more it says nothing."""


def packing_bound(load: Floats, slots: int, ranks: int, per_rank: int, reached: float) -> float:
    """The least max GPU load that some replica counts of one layer still allow, `reached` if none allows less; 0 where
    there are too many counts to look at each. `load`: [E].

    Counts that could do better than `reached` give every expert enough replicas that none is above it. The slots that
    are left over then are given to experts, or left empty, in every possible way.
    """
    experts = len(load)
    least = np.maximum(np.ceil(load / reached * (1 - 1e-12)), 1).astype(np.int64)
    spare = slots - int(least.sum())
    if spare < 0:
        return reached
    if math.comb(experts + spare, spare) > MOST_COUNTS:
        return 0.0
    given = np.array(list(combinations_with_replacement(range(experts + 1), spare)), dtype=np.int64)
    counts = np.tile(np.append(least, 0), (len(given), 1))
    np.add.at(counts, (np.arange(len(given))[:, None], given), 1)
    counts = counts[:, :-1]
    share = np.tile(np.append(load, 0.0), (len(given), 1))
    share[:, :-1] /= counts
    empty = ranks * per_rank - counts.sum(axis=1)
    counts = np.concatenate([counts, empty[:, None]], axis=1)
    items = np.repeat(share.reshape(-1), counts.reshape(-1)).reshape(len(given), -1)
    return min(reached, float(_packed_at_least(-np.sort(-items, axis=1), ranks, per_rank).min()))


def _packed_at_least(items: Floats, ranks: int, per_rank: int) -> Floats:
    """[N]: a max load that no packing of the items [N, R x S], the largest first, S to each of R ranks, can beat.

    For each i up to R: of the i largest items two share a rank, or else each is on its own, together with S - 1 others
    that are at least the i (S - 1) smallest, the largest of which is with an item of at least the i-th. And for each q
    below S some rank has q + 1 of the q R + 1 largest items. In both cases the smallest items fill the rest of the rank.
    The first is exact for S = 2.
    """
    total = np.concatenate([np.zeros((len(items), 1)), np.cumsum(items, axis=1)], axis=1)
    smallest = np.concatenate([np.zeros((len(items), 1)), np.cumsum(items[:, ::-1], axis=1)], axis=1)
    out = np.zeros(len(items))
    for i in range(1, ranks + 1):
        apart = (total[:, i] + smallest[:, i * (per_rank - 1)]) / i
        if per_rank > 1:
            rest = smallest[:, per_rank - 2]
            apart = np.maximum(apart, items[:, i - 1] + items[:, -i * (per_rank - 1)] + rest)
            if i > 1:
                apart = np.minimum(apart, items[:, i - 2] + items[:, i - 1] + rest)
        out = np.maximum(out, apart)
    for q in range(per_rank):
        last = q * ranks + 1
        out = np.maximum(out, total[:, last] - total[:, last - q - 1] + smallest[:, per_rank - q - 1])
    return out
