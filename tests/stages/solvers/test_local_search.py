"""The search against enumeration, against what every placement must satisfy, and on the real loads."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.balance import gpu_load, lower_bound
from stages.errors import BadInput
from stages.expert_map import EMPTY, ExpertMap, duplicate_replicas, moved_slots, replica_counts
from stages.solvers.local_search import Found, local_search, movement_curve
from stages.solvers.options import PlaceOptions
from stages.solvers.problem import Problem
from tests.stages.solvers import cases
from tests.stages.solvers.cases import balance, deepseek_v3, gpt_oss, olmoe, problem, problems, zipf
from tests.stages.test_balance import optimum

KNOWN = json.loads((Path(__file__).parents[2] / "golden" / "placement_known_answers.json").read_text())


def search(given: Problem, seed: int = 0, **options: Any) -> Found:
    return local_search(given, PlaceOptions(**options), seed)


@cache
def every_map(experts: int, ranks: int, per_rank: int) -> ExpertMap:
    """[N, P]: every placement of one layer that fills all slots with all experts, no two replicas on one rank."""
    maps = np.array(list(product(range(experts), repeat=ranks * per_rank)))
    complete = np.all([(maps == expert).any(axis=1) for expert in range(experts)], axis=0)
    rows = np.sort(maps.reshape(len(maps), ranks, per_rank), axis=2)
    return maps[complete & ~(rows[:, :, 1:] == rows[:, :, :-1]).any(axis=(1, 2))]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.sampled_from([(2, 2, 2), (3, 2, 2), (4, 2, 2), (3, 4, 1), (4, 4, 1), (3, 3, 2), (4, 3, 2), (5, 3, 2), (4, 2, 3), (6, 2, 3)]),
    st.integers(0, 2**32),
)  # fmt: skip
def test_finds_the_optimum_of_small_cases(size: tuple[int, int, int], seed: int) -> None:
    experts, ranks, per_rank = size
    load = np.random.default_rng(seed).integers(0, 100, (1, experts)).astype(float)
    maps = every_map(experts, ranks, per_rank)
    best = gpu_load(np.tile(load, (len(maps), 1)), maps, ranks).max(axis=1).min()
    found = search(problem(load, ranks * per_rank, ranks), max_steps=400)
    top = gpu_load(load, found.map, ranks).max()
    # What is in place may be better still: there, two replicas can share a rank and leave another slot as good as empty.
    assert top <= best * (1 + 1e-9)
    bound = lower_bound(load, ranks * per_rank, ranks, reached=np.array([top]))[0]
    assert bound <= top * (1 + 1e-12)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.sampled_from([(3, 2, 2), (4, 2, 2), (3, 3, 2), (4, 3, 2)]), st.integers(0, 2**32))
def test_the_gap_is_what_replicas_that_share_a_rank_would_save(size: tuple[int, int, int], seed: int) -> None:
    """The bound holds for placements with those and with empty slots too: there, and only there, it can be below."""
    experts, ranks, per_rank = size
    load = np.random.default_rng(seed).integers(1, 100, (1, experts)).astype(float)
    found = search(problem(load, ranks * per_rank, ranks), max_steps=400)
    top = gpu_load(load, found.map, ranks).max()
    bound = lower_bound(load, ranks * per_rank, ranks, reached=np.array([top]))[0]
    assert bound == pytest.approx(optimum(load[0], ranks * per_rank, ranks))


def test_flashlb_toy_is_solved_and_proven() -> None:
    toy = KNOWN["flashlb_toy"]
    load, slots = np.array([toy["load"]], dtype=float), toy["gpus"] * toy["slots_per_gpu"]
    found = search(problem(load, slots, toy["gpus"]))
    top = gpu_load(load, found.map, toy["gpus"]).max()
    assert top == pytest.approx(toy["exact_optimum"])
    assert lower_bound(load, slots, toy["gpus"], reached=np.array([top]))[0] == pytest.approx(top)
    counts = replica_counts(found.map, 8)[0].tolist()
    assert sorted(zip(toy["load"], counts, strict=True)) == sorted(zip(toy["load"], toy["optimal_counts"], strict=True))


def is_sound(given: Problem, found: Found, *, grouped: bool = False) -> None:
    """Every expert is there, in the slots there are, and groups keep to their nodes."""
    layers, experts = given.load.shape
    assert found.map.shape == given.current.shape
    assert replica_counts(found.map, experts).min() >= 1
    filled = (found.map != EMPTY).reshape(layers, given.topology.ranks, -1).sum(axis=2)
    assert (filled <= given.capacity).all()
    if grouped:
        node = np.arange(found.map.shape[1]) // (found.map.shape[1] // given.topology.nodes)
        group = np.where(found.map == EMPTY, -1, found.map // (experts // given.num_groups))
        for layer in range(layers):
            for each in range(given.num_groups):
                assert len(set(node[group[layer] == each])) == 1


def top_load(given: Problem, expert_map: ExpertMap) -> np.ndarray:
    return gpu_load(given.load, expert_map, given.topology.ranks).max(axis=1)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(problems(), st.integers(0, 3))
def test_the_best_balance_is_sound_and_never_worse(given: Problem, seed: int) -> None:
    found = search(given, seed, max_steps=15)
    is_sound(given, found)
    assert (top_load(given, found.map) <= top_load(given, given.current) * (1 + 1e-12)).all()
    assert not found.cut
    assert found.reached is None
    # No two replicas on one rank unless slots would stay empty, or the layer is as it was.
    experts, ranks = given.load.shape[1], given.topology.ranks
    for layer, row in enumerate(found.map):
        if (row == given.current[layer]).all():
            continue
        assert (row != EMPTY).sum() == given.capacity[layer].sum()
        if given.capacity[layer].max() == 1 or (
            len(set(given.capacity[layer])) == 1 and given.capacity[layer].sum() <= ranks * experts
        ):
            assert duplicate_replicas(row[None], experts, ranks) == 0


@settings(max_examples=100, deadline=None, derandomize=True)
@given(problems(), st.integers(0, 12), st.integers(0, 3))
def test_a_cap_is_kept_and_what_it_allows_is_used(given: Problem, cap: int, seed: int) -> None:
    experts, ranks = given.load.shape[1], given.topology.ranks
    found = search(given, seed, max_steps=15, max_moved_slots=cap)
    is_sound(given, found)
    assert moved_slots(given.current, found.map, experts, ranks) <= cap
    before, after = balance(given, given.current), balance(given, found.map)
    assert (after >= before - 1e-12).all()
    by_bytes = search(given, seed, max_steps=15, max_moved_bytes=cap * given.expert_bytes + given.expert_bytes - 1)
    np.testing.assert_array_equal(by_bytes.map, found.map)
    if cap == 0:
        assert after.mean() >= before.mean() - 1e-12


@settings(max_examples=100, deadline=None, derandomize=True)
@given(problems(), st.floats(0.3, 1.0), st.integers(0, 3))
def test_a_target_is_reached_or_as_near_as_the_search_comes(given: Problem, target: float, seed: int) -> None:
    experts, ranks = given.load.shape[1], given.topology.ranks
    found = search(given, seed, max_steps=15, target_balancedness=target)
    is_sound(given, found)
    after = balance(given, found.map).mean()
    assert found.reached == (after >= target - 1e-9)
    before = balance(given, given.current).mean()
    if before >= target:
        assert moved_slots(given.current, found.map, experts, ranks) == 0
    else:
        assert after >= before - 1e-12
    if not found.reached:
        best = search(given, seed, max_steps=15)
        assert after >= balance(given, best.map).mean() - 1e-9


@settings(max_examples=100, deadline=None, derandomize=True)
@given(problems(grouped=True), st.integers(0, 3))
def test_groups_keep_to_their_nodes(given: Problem, seed: int) -> None:
    found = search(given, seed, max_steps=15, locality="node_groups")
    is_sound(given, found, grouped=True)
    again = replace(given, current=found.map)
    best = search(again, seed + 1, max_steps=15, locality="node_groups")
    assert (top_load(again, best.map) <= top_load(again, found.map) * (1 + 1e-12)).all()
    few = search(again, seed, max_steps=15, locality="node_groups", max_moved_slots=2)
    is_sound(again, few, grouped=True)
    assert moved_slots(found.map, few.map, given.load.shape[1], given.topology.ranks) <= 2


@settings(max_examples=40, deadline=None, derandomize=True)
@given(problems(), st.sampled_from([{}, {"max_moved_slots": 3}, {"target_balancedness": 0.9}]), st.integers(0, 3))
def test_same_seed_and_steps_same_answer(given: Problem, options: dict[str, Any], seed: int) -> None:
    first, second = (search(given, seed, max_steps=20, **options) for _ in range(2))
    np.testing.assert_array_equal(first.map, second.map)
    assert first.attempts == second.attempts


def test_another_seed_finds_another_answer() -> None:
    given = problem(deepseek_v3(2), 288, 32)
    assert (search(given, 0, max_steps=5).map != search(given, 1, max_steps=5).map).any()


def test_without_a_limit_the_search_ends_by_itself_and_the_same() -> None:
    given = problem(gpt_oss()[:4], 48, 16)
    first, second = search(given), search(given)
    assert not first.cut
    np.testing.assert_array_equal(first.map, second.map)


def test_a_search_that_the_clock_cuts_says_so_and_still_answers() -> None:
    given = problem(deepseek_v3(), 288, 32)
    for options in ({}, {"target_balancedness": 0.999}, {"max_moved_slots": 500}):
        found = search(given, seconds=1e-6, **options)
        assert found.cut
        is_sound(given, found)
    assert search(given, seconds=1e-6).attempts == 58


def test_more_attempts_are_never_worse() -> None:
    given = problem(gpt_oss(), 48, 16)
    few, many = (balance(given, search(given, max_steps=steps).map) for steps in (3, 300))
    assert (many >= few - 1e-12).all()
    assert many.mean() > few.mean() + 0.005


@pytest.mark.parametrize(
    ("load", "slots", "ranks", "mean", "worst", "steps"),
    [
        (gpt_oss, 48, 16, 0.995, 0.988, 3000),
        (gpt_oss, 40, 8, 0.9992, 0.9985, 1500),
        (olmoe, 80, 8, 0.9999, 0.9997, 500),
        (deepseek_v3, 288, 32, 0.9997, 0.9992, 5),
        (zipf, 320, 64, 0.9995, 0.9980, 10),
    ],
    ids=["gpt-oss-48-16", "gpt-oss-40-8", "olmoe-80-8", "deepseek-288-32", "zipf-320-64"],
)
def test_floors(load: Any, slots: int, ranks: int, mean: float, worst: float, steps: int) -> None:
    given = problem(load(), slots, ranks)
    found = search(given, max_steps=steps)
    after = balance(given, found.map)
    assert after.mean() >= mean
    assert after.min() >= worst
    assert duplicate_replicas(found.map, given.load.shape[1], ranks) == 0


def after_noise(given: Problem, seed: int = 1) -> Problem:
    """`given` with what is best for it in place, and loads that have changed by 5 % since."""
    placed = search(given, max_steps=10).map
    noise = 1 + 0.05 * np.random.default_rng(seed).standard_normal(given.load.shape)
    return replace(given, current=placed, load=given.load * noise)


def test_a_tenth_of_the_moves_is_enough_after_noise() -> None:
    given = after_noise(problem(deepseek_v3(), 288, 32))
    assert balance(given, given.current).mean() < 0.97
    capped = search(given, max_steps=11, max_moved_slots=1400)
    assert balance(given, capped.map).mean() >= 0.995
    least = search(given, max_steps=11, target_balancedness=0.995)
    assert least.reached
    assert balance(given, least.map).mean() >= 0.995
    assert moved_slots(given.current, least.map, 256, 32) <= 1400


def test_crossing_nodes_is_avoided_where_it_costs_more() -> None:
    slow = cases.Links(cases.Link(350.0, 0.0), cases.Link(50.0, 0.0))
    flat = after_noise(problem(deepseek_v3(12), 288, 32, nodes=4))
    costly = replace(flat, topology=replace(flat.topology, links=slow))

    def crossing(given: Problem) -> int:
        new = search(given, max_steps=11, target_balancedness=0.995).map
        return moved_slots(given.current, new, 256, 4)  # to nodes, as if each were one rank

    assert crossing(costly) < crossing(flat) / 4


def test_the_curve_runs_from_what_is_in_place_to_the_best() -> None:
    given = after_noise(problem(gpt_oss(), 40, 8))
    best = search(given, max_steps=300).map
    moved, curve = movement_curve(given, PlaceOptions(), best, 0)
    assert (moved[0], curve[0]) == (0, pytest.approx(balance(given, given.current).mean()))
    assert curve[-1] >= balance(given, best).mean() - 1e-12
    assert (np.diff(moved) > 0).all()
    assert (np.diff(curve) > 0).all()
    slope = np.diff(curve) / np.diff(moved)
    assert (np.diff(slope) <= 1e-12).all()  # what pays most comes first


def test_slots_that_stay_keep_their_place() -> None:
    """A slot whose expert its rank keeps is not touched, so that nothing is copied within a GPU for nothing."""
    given = after_noise(problem(deepseek_v3(3), 288, 32))
    found = search(given, max_steps=11, max_moved_slots=40)
    changed = (found.map != given.current).sum()
    assert changed == moved_slots(given.current, found.map, 256, 32)


def test_a_cap_that_the_current_placement_breaks_already_is_refused() -> None:
    load = np.ones((1, 2))
    given = replace(problem(load, 4, 2, current=np.array([[0, 1, -1, -1]])), capacity=np.array([[1, 1]]))
    with pytest.raises(BadInput, match="the current placement has more slots in some layers"):
        search(given, max_moved_slots=0)


def test_groups_that_fit_no_node_are_refused() -> None:
    given = problem(np.ones((1, 8)), 8, 4, nodes=2, num_groups=1)
    with pytest.raises(BadInput, match="room for 0 of the 1 groups of 8 experts, and there are 2 nodes"):
        search(given, locality="node_groups")
    with pytest.raises(BadInput, match=r"model\.num_groups=3 does not divide the 8 experts"):
        search(replace(given, num_groups=3), locality="node_groups")
