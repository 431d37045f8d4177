"""Which option of each layer: against every combination there is."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.solvers.choice import Options, best_within, curve, least_for


def options(*points: tuple[float, float, float]) -> Options:
    """From (moved, cost, balance)."""
    moved, cost, balance = np.array(points, dtype=float).T
    return Options(balance, moved, cost)


@st.composite
def layers(draw: st.DrawFn, *, concave: bool) -> list[Options]:
    """Fronts as the search makes them: each option moves more than the one before, and is better."""
    out = []
    for _ in range(draw(st.integers(1, 4))):
        size = draw(st.integers(1, 4))
        steps = draw(st.lists(st.integers(1, 3), min_size=size - 1, max_size=size - 1))
        moved = np.concatenate([[0], np.cumsum([1] * len(steps) if concave else steps)]).astype(float)
        gains = sorted(
            draw(st.lists(st.floats(0.001, 0.1), min_size=size - 1, max_size=size - 1)), reverse=True, key=float
        )
        gains = gains if concave else draw(st.permutations(gains))
        factor = 1 if concave else draw(st.integers(1, 5))
        out.append(Options(0.5 + np.concatenate([[0.0], np.cumsum(gains)]), moved, moved * factor))
    return out


def combinations(offers: list[Options]) -> list[tuple[float, float, float]]:
    """(moved, cost, mean balance) of every combination."""
    return [
        (
            sum(o.moved[n] for o, n in zip(offers, pick, strict=True)),
            sum(o.cost[n] for o, n in zip(offers, pick, strict=True)),
            float(np.mean([o.balance[n] for o, n in zip(offers, pick, strict=True)])),
        )
        for pick in product(*(range(len(o.balance)) for o in offers))
    ]


def outcome(offers: list[Options], chosen: np.ndarray) -> tuple[float, float, float]:
    return (
        sum(o.moved[n] for o, n in zip(offers, chosen, strict=True)),
        sum(o.cost[n] for o, n in zip(offers, chosen, strict=True)),
        float(np.mean([o.balance[n] for o, n in zip(offers, chosen, strict=True)])),
    )


@settings(max_examples=80, deadline=None, derandomize=True)
@given(layers(concave=True), st.integers(0, 10))
def test_where_every_move_pays_less_than_the_one_before_the_choice_is_the_best(offers: list[Options], cap: int) -> None:
    moved, _, balance = outcome(offers, best_within(offers, cap))
    assert moved <= cap
    assert balance == pytest.approx(max(b for m, _, b in combinations(offers) if m <= cap))
    moved, cost, again = outcome(offers, least_for(offers, balance - 1e-12))
    assert again >= balance - 1e-12
    assert cost == min(c for _, c, b in combinations(offers) if b >= balance - 1e-12)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(layers(concave=False), st.integers(0, 15), st.floats(0.5, 0.9))
def test_caps_and_targets_are_kept(offers: list[Options], cap: int, target: float) -> None:
    every = combinations(offers)
    moved, _, balance = outcome(offers, best_within(offers, cap))
    assert moved <= cap
    # Never more than the largest single gain from the best there is.
    largest = max(float(np.diff(o.balance).sum()) for o in offers) / len(offers)
    assert balance >= max(b for m, _, b in every if m <= cap) - largest
    _, cost, reached = outcome(offers, least_for(offers, target))
    possible = [c for _, c, b in every if b >= target]
    if possible:
        assert reached >= target
        assert cost <= min(possible) + max(float(o.cost[-1]) for o in offers)
    else:
        assert reached == pytest.approx(max(b for _, _, b in every))


def test_a_step_over_a_dent_is_taken_at_once() -> None:
    """One move gains little, two gain much: the hull goes straight to two."""
    offers = [options((0, 0, 0.5), (1, 1, 0.51), (2, 2, 0.7)), options((0, 0, 0.5), (1, 1, 0.55))]
    assert best_within(offers, 2).tolist() == [2, 0]
    assert best_within(offers, 1).tolist() == [0, 1]
    assert best_within(offers, 0).tolist() == [0, 0]
    moved, balance = curve(offers)
    assert moved.tolist() == [0, 2, 3]
    assert balance.tolist() == pytest.approx([0.5, 0.6, 0.625])


def test_what_is_more_than_enough_is_given_back() -> None:
    """The steepest step alone overshoots; a cheaper one of the other layer is enough."""
    offers = [options((0, 0, 0.5), (4, 4, 0.9)), options((0, 0, 0.5), (1, 1, 0.55))]
    assert least_for(offers, 0.52).tolist() == [0, 1]
    assert least_for(offers, 0.6).tolist() == [1, 0]
    assert least_for(offers, 0.71).tolist() == [1, 1]
    assert least_for(offers, 0.99).tolist() == [1, 1]


def test_cost_and_moved_slots_can_disagree() -> None:
    """The layer whose moves cross nodes is left alone for a target, not under a cap."""
    offers = [options((0, 0, 0.5), (1, 7, 0.6)), options((0, 0, 0.5), (2, 2, 0.6))]
    assert least_for(offers, 0.55).tolist() == [0, 1]
    assert best_within(offers, 1).tolist() == [1, 0]


def test_layers_without_a_choice() -> None:
    offers = [options((0, 0, 1.0)), options((3, 3, 0.9))]
    assert best_within(offers, 0).tolist() == [0, 0]
    assert least_for(offers, 1.0).tolist() == [0, 0]
    moved, balance = curve(offers)
    assert (moved.tolist(), balance.tolist()) == ([3], pytest.approx([0.95]))
