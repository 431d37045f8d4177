"""Budgets of redundant experts: against every way to spend them."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.expert_map import contiguous_map
from stages.load import LoadStats
from stages.model import ModelSpec, TensorSpec
from stages.solvers import solver
from stages.solvers.local_search import balance_from_scratch
from stages.solvers.options import PlaceOptions
from stages.solvers.slots import (
    Budget,
    budget_of,
    capacity_of,
    capacity_of_current,
    contiguous_within,
    spent_where_it_helps,
    total_steps,
)
from stages.topology import Topology


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 2**32))
def test_the_budget_is_spent_in_the_best_way(layers: int, tried: int, seed: int) -> None:
    balance = np.sort(np.random.default_rng(seed).random((layers, tried)), axis=1)
    budget = Budget(balance, 8, 4)
    ways = {}
    for steps in product(range(tried), repeat=layers):
        total = sum(steps)
        ways[total] = max(ways.get(total, 0.0), float(balance[range(layers), steps].mean()))
    best = np.maximum.accumulate([ways[total] for total in sorted(ways)])
    np.testing.assert_allclose(budget.best, best)
    np.testing.assert_allclose(budget.even, balance.mean(axis=0))
    for total in range(layers * (tried - 1) + 3):
        steps = spent_where_it_helps(budget, total)
        assert steps.sum() <= total
        assert balance[range(layers), steps].mean() == pytest.approx(best[min(total, len(best) - 1)])


def test_the_knee_is_where_the_curve_bends() -> None:
    budget = Budget(np.array([[0.5, 0.9, 0.92, 0.93]]), 8, 4)
    assert budget.knee == 1
    flat = Budget(np.array([[0.7, 0.7]]), 8, 4)
    assert flat.knee == 0


def test_a_budget_ends_where_every_rank_can_hold_every_expert() -> None:
    asked: list[list[int]] = []

    def balance_with(slots: np.ndarray) -> np.ndarray:
        asked.append(slots.tolist())
        return np.array([0.5, 1.0])

    budget = budget_of(balance_with, 2, experts=3, ranks=2, tried=100)
    assert asked == [[4, 4], [6, 6]]
    assert spent_where_it_helps(budget, 2).tolist() == [0, 0]  # more buys nothing


def test_budget_curves_share_what_they_try_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    loads = np.random.default_rng(0).lognormal(4, 1, (2, 3, 16)).astype(np.int64)
    model = ModelSpec(top_k=2, num_groups=4, tensors=[TensorSpec("w", [64], "uint8")])
    searched: list[None] = []

    def search(*args: Any) -> Any:
        searched.append(None)
        return balance_from_scratch(*args)

    monkeypatch.setattr(solver, "balance_from_scratch", search)

    def curve(load: int, nodes: int, locality: str, seed: int, even: int) -> list[Any]:
        options = PlaceOptions(algorithm="local_search", locality=locality)
        topology = Topology(nodes=nodes, gpus_per_node=4 // nodes)
        made = solver.solver_of(options, model, topology, seed, LoadStats(loads[load][None]))
        return made.budget_curve(loads[load], even).balance.tolist()

    cases = [(0, 2, "none", 0), (1, 2, "none", 0), (0, 1, "none", 0), (0, 2, "node_groups", 0), (0, 2, "none", 1)]
    known: dict[tuple[object, ...], Any] = {}
    monkeypatch.setattr(solver, "_TRIED", known)
    together = [curve(*case, even) for case in cases for even in (1, 3)]
    assert len(searched) == len(known) == 7 * len(cases)  # those of the shorter curve are among the longer's
    alone = []
    for case in cases:
        for even in (1, 3):
            known.clear()
            alone.append(curve(*case, even))
    assert together == alone
    assert len({str(each) for each in alone}) == 2 * (len(cases) - 1)  # without groups nodes make no difference


@pytest.mark.parametrize(
    ("redundant", "experts", "ranks", "steps"),
    [
        (0, 8, 4, 0),
        (1, 8, 4, 1),  # rounded up to a slot on every rank of one layer
        (8, 8, 4, 2),
        (9, 8, 4, 3),
        (0, 6, 4, 0),  # rounding gives each of the 3 layers 2 slots already
        (6, 6, 4, 0),
        (7, 6, 4, 1),
    ],
)
def test_a_total_pays_for_steps(redundant: int, experts: int, ranks: int, steps: int) -> None:
    options = PlaceOptions(redundant_experts=redundant, redundancy="total")
    assert total_steps(options, 3, experts, ranks) == steps


def test_contiguous_over_the_slots_that_a_layer_has() -> None:
    found = contiguous_within(np.array([[2, 2], [1, 1], [1, 2]]), 2)
    assert found.tolist() == [[0, 1, 0, 1], [0, -1, 1, -1], [0, -1, 1, 0]]
    np.testing.assert_array_equal(contiguous_within(capacity_of(np.array([12, 12]), 4), 5), contiguous_map(2, 5, 12))


def test_what_the_current_placement_fills() -> None:
    current = np.array([[0, -1, 1, 0], [-1, 1, 0, -1]])
    assert capacity_of_current(current, 2).tolist() == [[1, 2], [1, 1]]
