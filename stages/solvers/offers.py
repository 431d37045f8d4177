"""What each layer can become: its current placement, others between that and the best, and the best from nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import numpy.typing as npt

from stages.balance import gpu_load
from stages.expert_map import EMPTY, ExpertMap
from stages.solvers import choice
from stages.solvers.front import Front
from stages.solvers.movement import bringing_costs, moved_and_cost
from stages.solvers.problem import Problem
from stages.solvers.rows import Row

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Layer:
    """What one layer can become: its placement from nothing, or entries `picks` [N, rows] of its rows' fronts.
    Option n is source[n] of these, the one from nothing being the last."""

    options: choice.Options
    source: Ints
    rows: Sequence[Row]
    fronts: Sequence[Front]
    picks: Ints
    scratch: ExpertMap
    per_rank: int

    def map(self, n: int) -> ExpertMap:
        """[P]: option n."""
        source = self.source[n]
        if source == len(self.picks):
            return self.scratch
        out = np.full((len(self.scratch) // self.per_rank, self.per_rank), EMPTY, dtype=np.int64)
        for row, front, pick in zip(self.rows, self.fronts, self.picks[source], strict=True):
            out[row.first : row.first + len(row.capacity)] = row.as_logical(front.slot(int(pick)))
        return out.reshape(-1)


def layers_of(
    problem: Problem, rows: Sequence[Row], between: Sequence[Front | None], scratch: ExpertMap
) -> list[Layer]:
    """The options of every layer. `scratch` [L, P]: its placement from nothing."""
    per_rank = scratch.shape[1] // problem.topology.ranks
    tops_scratch = gpu_load(problem.load, scratch, problem.topology.ranks).max(axis=1)
    out = []
    for layer, pairs in groupby(zip(rows, between, strict=True), key=lambda pair: pair[0].layer):
        of_layer, fronts_or_none = zip(*pairs, strict=True)
        found = [front for front in fronts_or_none if front is not None]
        if len(found) == len(of_layer):
            picks, top, moved, cost = _joint(found)
        else:
            picks, top, moved, cost = np.empty((0, len(of_layer)), np.int64), *(np.empty(0) for _ in range(3))
        weight = bringing_costs(problem.current[layer], problem.experts, problem.topology)
        moved_scratch, cost_scratch = moved_and_cost(scratch[layer], weight)
        top = np.append(top, tops_scratch[layer])
        moved, cost = np.append(moved, moved_scratch), np.append(cost, cost_scratch)
        order = np.argsort(moved, kind="stable")
        better = top[order] < np.minimum.accumulate(np.concatenate([[np.inf], top[order]]))[:-1]
        source = order[better]
        balance = np.where(top > 0, problem.mean[layer] / np.where(top > 0, top, 1.0), 1.0)
        options = choice.Options(balance[source], moved[source], cost[source])
        out.append(Layer(options, source, of_layer, found, picks, scratch[layer], per_rank))
    return out


def _joint(found: Sequence[Front]) -> tuple[Ints, Floats, Floats, Floats]:
    """Of the rows of one layer together: entries picked [N, rows], largest GPU load, moved slots and cost [N]."""
    tops = np.unique(np.concatenate([front.top for front in found]))[::-1]
    tops = tops[tops >= max(front.top[-1] for front in found)]
    # For each largest load, of every row the first entry that is not above it.
    picks = np.stack([np.searchsorted(-front.top, -tops, side="left") for front in found], axis=1)
    each = list(zip(found, picks.T, strict=True))
    moved = np.stack([front.moved[pick] for front, pick in each]).sum(axis=0, dtype=np.float64)
    cost = np.stack([front.cost[pick] for front, pick in each]).sum(axis=0)
    return picks, tops, moved, cost
