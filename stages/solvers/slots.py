"""How many slots each layer and rank has: the budget of redundant experts, and where it helps most."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stages.expert_map import EMPTY, ExpertMap, slots_for
from stages.solvers.options import PlaceOptions

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

MORE = 3
"""How many steps a budget curve goes beyond what layers have."""


@dataclass(frozen=True)
class Budget:
    """What redundant experts buy. A *step* is one slot more on every rank of a layer.

    `balance` [L, K]: balancedness of each layer with 0 … K - 1 steps, of `ranks` slots each, beyond the `base` slots that
    hold its experts at least.
    """

    balance: Floats
    base: int
    ranks: int

    @property
    def even(self) -> Floats:
        """[K]: balancedness with so many steps in every layer."""
        return self.balance.mean(axis=0)

    @property
    def best(self) -> Floats:
        """[L (K - 1) + 1]: the best balancedness with so many steps in all layers together."""
        return _best_sums(self.balance)[0][-1] / len(self.balance)

    @property
    def knee(self) -> int:
        """The number of steps in all layers after which a step buys less than the average one.

        Where the curve is farthest above its chord (Kneedle; Satopää et al., 2011).
        """
        best = self.best
        return int((best - np.linspace(best[0], best[-1], len(best))).argmax())


def budget_of(balance_with: Callable[[Ints], Floats], layers: int, experts: int, ranks: int, tried: int) -> Budget:
    """The budget curve with 0 … `tried` - 1 steps. `balance_with`: from the slots of each layer [L] to balancedness [L]."""
    base = slots_for(experts, 0, ranks)
    enough = max(0, experts - base // ranks)  # then every rank can hold every expert
    balance = [balance_with(np.full(layers, base + k * ranks)) for k in range(min(tried, enough + 1))]
    # A slot more can be left as it was, so that the balance never falls; what is but rounding buys nothing.
    return Budget(np.maximum.accumulate(np.stack(balance, axis=1).round(9), axis=1), base, ranks)


def spent_where_it_helps(budget: Budget, total: int) -> Ints:
    """[L]: the steps of each layer, `total` in all, for the best mean balancedness."""
    _, choice = _best_sums(budget.balance)
    left = min(total, choice.shape[1] - 1)
    steps = np.zeros(len(budget.balance), dtype=np.int64)
    for layer in reversed(range(len(steps))):
        steps[layer] = choice[layer, left]
        left -= steps[layer]
    return steps


def total_steps(options: PlaceOptions, layers: int, experts: int, ranks: int) -> int:
    """Steps that a total of redundant experts pays for, rounded up: the slots that rounding gives each layer count too."""
    base = slots_for(experts, 0, ranks)
    return max(0, -(-(layers * experts + options.redundant_experts - layers * base) // ranks))


def capacity_of(slots: Ints, ranks: int) -> Ints:
    """[L, R]: slots of each rank, where each layer has `slots` [L] over all ranks."""
    return np.repeat((slots // ranks)[:, None], ranks, axis=1)


def capacity_of_current(current: ExpertMap, ranks: int) -> Ints:
    """[L, R]: the slots that the current placement [L, P] fills."""
    return (current != EMPTY).reshape(len(current), ranks, -1).sum(axis=2)


def contiguous_within(capacity: Ints, experts: int) -> ExpertMap:
    """[L, P]: slot s of those that a layer has holds expert s mod E, rank after rank; the other slots are empty."""
    layers, ranks = capacity.shape
    per_rank = int(capacity.max())
    first = np.cumsum(capacity, axis=1) - capacity
    expert = (first[:, :, None] + np.arange(per_rank)) % experts
    return np.where(np.arange(per_rank) < capacity[:, :, None], expert, EMPTY).reshape(layers, ranks * per_rank)


def _best_sums(balance: Floats) -> tuple[Floats, Ints]:
    """[L + 1, B + 1]: the largest sum of balancedness over the first layers with b steps; [L, B + 1]: the steps that the
    last of them gets there. B: as many as all layers can take."""
    layers, tried = balance.shape
    size = layers * (tried - 1) + 1
    best, choice = np.full((layers + 1, size), -np.inf), np.zeros((layers, size), dtype=np.int64)
    best[0] = 0.0
    for layer in range(layers):
        with_ = np.full((tried, size), -np.inf)
        for k in range(tried):
            with_[k, k:] = best[layer, : size - k] + balance[layer, k]
        choice[layer] = with_.argmax(axis=0)
        best[layer + 1] = with_.max(axis=0)
    return best, choice
