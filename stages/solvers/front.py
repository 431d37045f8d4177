"""What each move buys: placements of a row between the current one and the best, by how many slots they move."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from stages.solvers.clock import Clock, Crew
from stages.solvers.movement import Weights, bringing_costs
from stages.solvers.problem import Problem
from stages.solvers.rows import Experts, Row
from stages.solvers.scratch import random_state

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

AIMS = (0.75, 0.55, 0.4, 0.3, 0.22, 0.16, 0.12, 0.08, 0.05, 0.025, 0.0)
"""How much of what the fullest GPU has above the bound a walk leaves: each walk takes other moves to get there."""
NOISE = 0.1
WALKS = 2
"""Without a limit of attempts, walks for each aim; all but the first choose their moves a little by chance."""
ENTRIES = 512
"""A front has at most so many entries: in rows of more slots an entry stands for several numbers of moved slots."""


class Front:
    """The best placements that walks from the current one have met.

    `top`, `cost`, `moved` [N]: largest GPU load, cost and moved slots of entry n, the cheapest first and each better
    than those before, the first being the current placement itself.
    """

    def __init__(self, row: Row, weight: Weights, seed: Sequence[int]) -> None:
        """`weight` [E', R']: the cost of bringing an expert to a rank."""
        assert row.current is not None
        self._row, self._weight = row, np.ascontiguousarray(weight)
        self._start = row.current
        self._stride = -(-row.slots // ENTRIES)
        entries = -(-row.slots // self._stride) + 1
        self._top, self._cost = np.full(entries, np.inf), np.zeros(entries)
        self._moved = np.zeros(entries, dtype=np.int64)
        self._slot: Experts = np.empty((entries, *self._start.shape), dtype=np.int32)
        self._random = random_state(seed)
        self._walk(np.inf, 0.0)  # records where it starts

    def walk(self, aim: float, *, by_chance: bool) -> None:
        start, bound = float(self._top[0]), self._row.bound
        self._walk(bound + aim * (start - bound), NOISE if by_chance else 0.0)

    def _walk(self, top: float, noise: float) -> None:
        from stages.solvers.kernels.approach import approach

        row = self._row
        approach(
            row.load, row.capacity, row.most, self._weight, self._start, top, noise, self._random, self._stride,
            self._top, self._cost, self._moved, self._slot,
        )  # fmt: skip

    @property
    def kept(self) -> Ints:
        """[N]: the entries that no cheaper entry equals."""
        best = np.minimum.accumulate(np.concatenate([[np.inf], self._top[:-1]]))
        return np.flatnonzero(self._top < best)

    @property
    def top(self) -> Floats:
        return self._top[self.kept]

    @property
    def cost(self) -> Floats:
        return self._cost[self.kept]

    @property
    def moved(self) -> Ints:
        return self._moved[self.kept]

    def slot(self, n: int) -> Experts:
        return self._slot[self.kept[n]]


def fronts(
    problem: Problem,
    rows: Sequence[Row],
    factor: float | None,
    seed: int,
    max_steps: int | None,
    clock: Clock,
    crew: Crew,
) -> list[Front | None]:
    """The front of every row whose current placement fits, by one walk for each aim and then more of them, until
    `max_steps` walks a row or the clock end it. At least one walk, all the way, is made in each. `factor`: what crossing
    nodes costs, if not what the links say."""
    found: list[Front | None] = []
    for index, row in enumerate(rows):
        weight = bringing_costs(problem.current[row.layer], problem.experts, problem.topology, factor)
        own = weight[row.experts, row.first : row.first + len(row.capacity)]
        found.append(None if row.current is None else Front(row, own, (seed, 1, index)))
    there = [front for front in found if front is not None]
    crew.each(lambda front: front.walk(0.0, by_chance=False), there)
    walks = [(aim, walk > 0) for walk in range(WALKS) for aim in reversed(AIMS) if walk > 0 or aim > 0]
    for aim, by_chance in walks[: None if max_steps is None else max(0, max_steps - 1)]:

        def more(front: Front, aim: float = aim, by_chance: bool = by_chance) -> None:
            if not clock.over():
                front.walk(aim, by_chance=by_chance)

        crew.each(more, there)
        if clock.cut:
            break
    return found
