"""Problems to place: the real loads, published sizes, and random small ones with every oddity that is allowed."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from stages.balance import balancedness_per_layer, gpu_load
from stages.collect.samples import SAMPLES
from stages.expert_map import EMPTY, ExpertMap, contiguous_map
from stages.solvers.problem import Problem
from stages.topology import Link, Links, Topology

FLAT = Links(Link(1.0, 0.0), Link(1.0, 0.0))


def gpt_oss() -> np.ndarray:
    """[24, 32]: the shipped loads of gpt-oss-20b, summed."""
    with np.load(SAMPLES["gpt_oss_20b"].path) as file:
        return file["logical_count"].sum(axis=0).astype(float)


def olmoe() -> np.ndarray:
    """[9, 64]: the shipped loads of OLMoE, three domains of three layers."""
    with np.load(SAMPLES["olmoe"].path) as file:
        return np.concatenate([file[name] for name in file.files if name.startswith("olmoe")]).astype(float)


def deepseek_v3(layers: int = 58) -> np.ndarray:
    """[L, 256]: lognormal(0, 1) loads."""
    return np.random.default_rng(0).lognormal(0.0, 1.0, (layers, 256))


def zipf(layers: int = 58) -> np.ndarray:
    """[L, 256]: loads 1 / rank, in another order in every layer."""
    popularity = 1.0 / np.arange(1, 257)
    return np.stack([np.random.default_rng(layer).permutation(popularity) for layer in range(layers)])


def problem(
    load: np.ndarray,
    slots: int,
    ranks: int,
    *,
    current: ExpertMap | None = None,
    nodes: int = 1,
    links: Links = FLAT,
    num_groups: int = 1,
    expert_bytes: int = 10,
) -> Problem:
    """`slots` a layer, on `ranks` ranks; what is in place is the contiguous map unless `current` says otherwise."""
    layers, experts = load.shape
    return Problem(
        load,
        np.full((layers, ranks), slots // ranks),
        contiguous_map(layers, experts, slots) if current is None else current,
        Topology(nodes=nodes, gpus_per_node=ranks // nodes, links=links),
        num_groups,
        expert_bytes,
    )


def balance(given: Problem, expert_map: ExpertMap) -> np.ndarray:
    """[L]: balancedness."""
    return balancedness_per_layer(gpu_load(given.load, expert_map, given.topology.ranks))


@st.composite
def problems(draw: st.DrawFn, *, grouped: bool = False) -> Problem:
    """Any sizes that can be: one layer and one rank, as many ranks as slots, ranks without slots, layers with fewer
    slots than others, no load at all; what is in place has holes and replicas that share a rank."""
    nodes, gpus, per_rank = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 4))
    ranks, layers = nodes * gpus, draw(st.integers(1, 3))
    groups = draw(st.integers(1, 4)) if grouped else 1
    if grouped:
        size = draw(st.integers(1, max(1, gpus * per_rank * nodes // groups)))
        experts = groups * size
        per_rank = max(per_rank, -(-size * -(-groups // nodes) // gpus))
    else:
        experts = draw(st.integers(1, ranks * per_rank))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    capacity = np.full((layers, ranks), per_rank)
    if not grouped and draw(st.booleans()):
        for layer in range(layers):
            for _ in range(rng.integers(0, ranks * per_rank - experts + 1)):
                rank = rng.choice(np.flatnonzero(capacity[layer]))
                capacity[layer, rank] -= 1
        capacity[0, capacity[0].argmax()] = max(capacity[0].max(), 1)
    largest = draw(st.sampled_from([0, 1, 50, 10**6, 10**15]))
    load = rng.integers(0, largest + 1, (layers, experts)).astype(float)
    return Problem(
        load,
        capacity,
        _in_place(rng, capacity, per_rank, experts, draw(st.sampled_from([0.0, 0.4]))),
        Topology(nodes=nodes, gpus_per_node=gpus, links=Links(Link(350.0, 10.0), Link(50.0, 20.0))),
        groups,
        draw(st.integers(1, 100)),
    )


def _in_place(rng: np.random.Generator, capacity: np.ndarray, per_rank: int, experts: int, holes: float) -> ExpertMap:
    """[L, P]: every expert somewhere in the slots there are, replicas and holes in the others."""
    layers, ranks = capacity.shape
    out = np.full((layers, ranks, per_rank), EMPTY, dtype=np.int64)
    for layer in range(layers):
        extra = rng.integers(0, experts, capacity[layer].sum() - experts)
        extra[rng.random(len(extra)) < holes] = EMPTY
        held = rng.permutation(np.concatenate([np.arange(experts), extra]))
        for rank, part in enumerate(np.split(held, np.cumsum(capacity[layer])[:-1])):
            out[layer, rank, rng.permutation(per_rank)[: len(part)]] = part
    return out.reshape(layers, ranks * per_rank)
