"""Placements from nothing: the search of `kernels/scratch.py` on all rows, in rounds, until it no longer helps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from stages.solvers.clock import Clock, Crew
from stages.solvers.rows import Experts, Row

PATIENCE, MOST_PATIENCE, EFFORT, STEEPNESS = 100, 20_000, 15_000_000, 1.3
"""Without a limit of attempts, a row ends after so many in vain, and more in a small row, where an attempt costs little:
until attempts x (slots x ranks) ** steepness come to the effort, or there were the most. Two and a half times as many
make the placements of `make bench-place` better by less than 0.0001."""
ROUNDS, TURN = (1, 4, 16), 500_000
"""Attempts in each row before the next row's turn; after these, so many that attempts x slots x ranks come to the last."""


class Scratch:
    """The search for one row: `top`, the largest GPU load of `slot` [R', S], the best placement so far."""

    def __init__(self, row: Row, seed: Sequence[int], patience: int | None = None) -> None:
        from stages.solvers.kernels.scratch import greedy_counts

        experts = len(row.experts)
        self._row = row
        self._counts = np.ones(experts, dtype=np.int32)
        greedy_counts(row.load, row.slots, row.most, self._counts)
        self._best_counts = self._counts.copy()
        self._order = np.argsort(-row.load / self._counts, kind="stable")
        self._random = random_state(seed)
        self._top = np.full(2, np.inf)
        self._steps = np.zeros(2, dtype=np.int64)
        self._size = row.slots * len(row.capacity)
        self._patience = patience or min(MOST_PATIENCE, max(PATIENCE, int(EFFORT / self._size**STEEPNESS)))
        self.slot: Experts = np.full((len(row.capacity), int(row.capacity.max())), -1, dtype=np.int32)

    @property
    def top(self) -> float:
        return float(self._top[0])

    @property
    def steps(self) -> int:
        return int(self._steps[0])

    @property
    def done(self) -> bool:
        return self.steps > 0 and (self.top <= self._row.bound * (1 + 1e-9) or self._steps[1] >= self._patience)

    @property
    def turn(self) -> int:
        """Attempts that take about a millisecond or two."""
        return max(ROUNDS[-1], TURN // self._size)

    def work(self, attempts: int) -> None:
        from stages.solvers.kernels.scratch import improve

        row = self._row
        improve(
            row.load, row.capacity, row.most, row.bound, attempts, self._patience, self._random, self._order,
            self._counts, self._best_counts, self.slot, self._top, self._steps,
        )  # fmt: skip


def random_state(seed: Sequence[int]) -> npt.NDArray[np.uint64]:
    """The state from which a kernel draws, never 0."""
    return np.random.SeedSequence(list(seed)).generate_state(1, np.uint64) | np.uint64(1)


def searches_of(rows: Sequence[Row], seed: int, max_steps: int | None) -> list[Scratch]:
    """The search of every row, not begun yet."""
    return [Scratch(row, (seed, index), max_steps) for index, row in enumerate(rows)]


def advance(searches: Sequence[Scratch], max_steps: int | None, clock: Clock, crew: Crew) -> None:
    """Search on in every row until it is done, `max_steps` attempts were made or the clock ends it; one attempt is made
    in each, whatever the clock says."""
    limit = max_steps if max_steps is not None else np.iinfo(np.int64).max
    crew.each(lambda search: search.work(1), [search for search in searches if not search.steps])
    rounds = iter(ROUNDS[1:])
    while open_ := [search for search in searches if not search.done and search.steps < limit]:
        attempts = next(rounds, None)

        def more(search: Scratch, attempts: int | None = attempts) -> None:
            if not clock.over():
                search.work(min(attempts or search.turn, limit - search.steps))

        crew.each(more, open_)
        if clock.cut:
            break
