"""Balance against loops, and the lower bound against every placement there is."""

from __future__ import annotations

import json
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.balance import (
    balancedness_per_layer,
    engine_metrics,
    gpu_load,
    lower_bound,
    packing_bound,
    replica_fit_bound,
    replica_load,
)
from stages.expert_map import EMPTY

GOLDEN = Path(__file__).parents[1] / "golden" / "placement_known_answers.json"


@st.composite
def placements(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int]:
    layers, ranks, per_rank, experts = (draw(st.integers(1, n)) for n in (3, 4, 4, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    return (
        rng.integers(0, 50, (layers, experts)).astype(float),
        rng.integers(EMPTY, experts, (layers, ranks * per_rank)),
        ranks,
    )


@settings(max_examples=60, deadline=None, derandomize=True)
@given(placements())
def test_loads_are_what_loops_add_up(case: tuple[np.ndarray, np.ndarray, int]) -> None:
    load, expert_map, ranks = case
    layers, slots = expert_map.shape
    by_slot = np.zeros((layers, slots))
    by_gpu = np.zeros((layers, ranks))
    for layer, slot in np.ndindex(layers, slots):
        expert = expert_map[layer, slot]
        if expert != EMPTY:
            by_slot[layer, slot] = load[layer, expert] / expert_map[layer].tolist().count(expert)
            by_gpu[layer, slot // (slots // ranks)] += by_slot[layer, slot]
    np.testing.assert_allclose(replica_load(load, expert_map), by_slot)
    np.testing.assert_allclose(gpu_load(load, expert_map, ranks), by_gpu)
    for layer in range(layers):
        top = by_gpu[layer].max()
        even = by_gpu[layer].mean() / top if top else 1.0
        assert balancedness_per_layer(by_gpu)[layer] == pytest.approx(even)


def test_each_engine_measures_balance_its_own_way() -> None:
    gpu = np.array([[1.0, 3.0], [4.0, 4.0]])
    assert engine_metrics(gpu) == pytest.approx(
        {
            "sglang_mean_over_max": (2 / 3 + 1) / 2,
            "vllm_sum_mean_over_sum_max": 6 / 7,
            "tensorrt_llm_excess": (1 / 2 + 0) / 2,
            "ascend_max_over_mean": (3 / 2 + 1) / 2,
        }
    )


def test_no_load_counts_as_perfect() -> None:
    nothing = np.zeros((2, 4))
    assert balancedness_per_layer(nothing).tolist() == [1.0, 1.0]
    assert engine_metrics(nothing) == {
        "sglang_mean_over_max": 1.0,
        "vllm_sum_mean_over_sum_max": 1.0,
        "tensorrt_llm_excess": 0.0,
        "ascend_max_over_mean": 1.0,
    }
    assert lower_bound(nothing, 4, 2).tolist() == [0.0, 0.0]


@cache
def all_maps(experts: int, slots: int) -> np.ndarray:
    """[N, P]: every map of one layer that holds every expert, with empty slots too."""
    maps = np.array(list(product(range(EMPTY, experts), repeat=slots)))
    complete = np.all([(maps == expert).any(axis=1) for expert in range(experts)], axis=0)
    return maps[complete]


def optimum(load: np.ndarray, slots: int, ranks: int) -> float:
    """The least max GPU load of one layer over all replica counts and packings."""
    maps = all_maps(len(load), slots)
    return float(gpu_load(np.tile(load, (len(maps), 1)), maps, ranks).max(axis=1).min())


SMALL = [(2, 2, 2), (2, 4, 2), (3, 4, 2), (3, 4, 4), (4, 4, 2), (3, 6, 3), (4, 6, 2), (4, 6, 3), (2, 6, 6), (1, 4, 2)]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.sampled_from(SMALL), st.data())
def test_no_placement_beats_the_lower_bound(size: tuple[int, int, int], draw: st.DataObject) -> None:
    experts, slots, ranks = size
    loads = st.one_of(st.integers(0, 5), st.integers(0, 1000), st.sampled_from([0, 1, 10**6]))
    load = np.array(draw.draw(st.lists(loads, min_size=experts, max_size=experts)), dtype=float)
    best = optimum(load, slots, ranks)
    reached = best * draw.draw(st.sampled_from([1.0, 1.01, 1.3, 4.0]))
    for bound in (
        lower_bound(load[None], slots, ranks)[0],
        lower_bound(load[None], slots, ranks, reached=np.array([reached]))[0],
    ):
        assert bound >= load.sum() / ranks
        assert bound <= best * (1 + 1e-12)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.sampled_from([size for size in SMALL if size[1] == 2 * size[2]]), st.integers(0, 2**32))
def test_with_two_slots_a_rank_the_lower_bound_is_the_optimum(size: tuple[int, int, int], seed: int) -> None:
    """Where all replica counts can be looked at, since the bound for given counts is exact then."""
    experts, slots, ranks = size
    load = np.random.default_rng(seed).integers(0, 50, experts).astype(float)
    assert lower_bound(load[None], slots, ranks)[0] == pytest.approx(optimum(load, slots, ranks))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.sampled_from([(3, 6, 3), (4, 8, 4), (5, 6, 2)]), st.data())
def test_layers_with_fewer_slots_have_bounds_of_their_own(size: tuple[int, int, int], draw: st.DataObject) -> None:
    """Slots and the most slots of a rank may differ from layer to layer: each bound is that of the layer alone."""
    experts, slots, ranks = size
    rng = np.random.default_rng(draw.draw(st.integers(0, 2**32)))
    load = rng.integers(0, 100, (3, experts)).astype(float)
    available = rng.integers(experts, slots + 1, 3)
    per_rank = np.maximum(-(-available // ranks), rng.integers(1, slots // ranks + 1, 3))
    together = lower_bound(load, available, ranks, per_rank)
    for layer in range(3):
        assert together[layer] == lower_bound(load[layer : layer + 1], available[layer], ranks, per_rank[layer])[0]


def test_fewer_usable_slots_bound_what_enumeration_finds() -> None:
    """Slots that a layer may not use stay empty in every map that is looked at."""
    rng = np.random.default_rng(3)
    for _ in range(20):
        load = rng.integers(1, 60, 3).astype(float)
        maps = all_maps(3, 6)
        maps = maps[(maps != EMPTY).sum(axis=1) <= 4]
        best = gpu_load(np.tile(load, (len(maps), 1)), maps, 2).max(axis=1).min()
        assert lower_bound(load[None], 4, 2, 3)[0] <= best * (1 + 1e-12)


def test_too_many_replica_counts_are_not_looked_at() -> None:
    load = np.random.default_rng(0).lognormal(0, 1, 64)
    assert packing_bound(load, 96, 8, 12, float(load.sum())) == 0.0
    assert lower_bound(load[None], 96, 8)[0] == replica_fit_bound(load[None], np.array([96]), 8)[0]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 12), st.integers(0, 8), st.integers(1, 5), st.integers(0, 2**32))
def test_the_replica_fit_bound_is_the_least_load_whose_replicas_fit(
    experts: int, redundant: int, ranks: int, seed: int
) -> None:
    """That least load is some expert's over some number of replicas, if it is not the mean."""
    slots = -(-(experts + redundant) // ranks) * ranks
    load = np.random.default_rng(seed).integers(1, 1000, experts).astype(float)
    fits = [
        most
        for most in (w / k for w in load for k in range(1, slots + 1))
        if np.ceil(load / most * (1 - 1e-9)).sum() <= slots
    ]
    expected = max(load.sum() / ranks, min(fits))
    assert replica_fit_bound(load[None], np.array([slots]), ranks)[0] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("load", "slots", "ranks", "bound"),
    [
        ([4, 4, 4, 4], 4, 4, 4),  # even already
        ([12, 0, 0, 0], 4, 2, 12),  # no slot left for a replica
        ([12, 0, 0, 0], 6, 2, 6),  # three replicas would do with less, but the mean is 6
        ([12, 1, 1, 1], 8, 8, 2.4),  # five slots for the heavy expert, whose replicas are the heaviest
        ([10, 10], 2, 2, 10),
    ],
)
def test_known_bounds(load: list[float], slots: int, ranks: int, bound: float) -> None:
    assert lower_bound(np.array([load], dtype=float), slots, ranks)[0] == pytest.approx(bound)


def test_the_published_toy_is_bounded_by_its_optimum() -> None:
    """From no more than EPLB's largest load: few enough replica counts could beat that to look at each."""
    toy = json.loads(GOLDEN.read_text(encoding="utf-8"))["flashlb_toy"]
    load, slots = np.array([toy["load"]], dtype=float), toy["gpus"] * toy["slots_per_gpu"]
    bound = lower_bound(load, slots, toy["gpus"], reached=np.array([float(toy["eplb_max"])]))[0]
    assert bound == pytest.approx(toy["exact_optimum"])
