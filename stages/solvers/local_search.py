"""The search for a placement: the best balance there is, or what little movement from the current placement buys.

Without a limit on movement every layer is placed from nothing, as well as time allows, and the shares of its ranks are
given to the ranks that hold most of them. Where movement counts, each layer has options between its current placement
and that best one, and the moves are made in the layers where they pay most.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import numpy.typing as npt

from stages.balance import gpu_load
from stages.errors import BadInput
from stages.expert_map import EMPTY, ExpertMap
from stages.solvers import choice, groups
from stages.solvers.clock import Clock, Crew
from stages.solvers.front import AIMS, Front, fronts
from stages.solvers.movement import arranged, bringing_costs, cross_node_factor, moved_and_cost, relabelled
from stages.solvers.options import PlaceOptions
from stages.solvers.rows import Row, make_rows
from stages.solvers.scratch import Scratch, from_scratch
from stages.topology import Topology

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

CROSSING = 1.5
"""Under a cap on moved slots or bytes: what one counts that crosses nodes, at most, where two moves are compared."""

SCRATCH_SHARE = 0.4
"""The part of the time that goes into placements from nothing where those between are sought too."""


@dataclass(frozen=True)
class Problem:
    """`load` [L, E] for `capacity` [L, R] slots of each rank, from `current` [L, P]; `num_groups` expert groups."""

    load: Floats
    capacity: Ints
    current: ExpertMap
    topology: Topology
    num_groups: int
    expert_bytes: int

    @property
    def experts(self) -> int:
        return self.load.shape[1]

    @property
    def mean(self) -> Floats:
        """[L]: the mean GPU load."""
        return self.load.sum(axis=1) / self.topology.ranks


@dataclass(frozen=True)
class Found:
    """`map` [L, P], and how it was found: `attempts` in all layers, layers `kept` as they were since little was to gain,
    `cut` short by the clock, whether the target was `reached` (None if there was none), and where movement counts the
    `curve` of what it buys: moved slots and balancedness [N]."""

    map: ExpertMap
    attempts: int = 0
    kept: int = 0
    cut: bool = False
    reached: bool | None = None
    curve: tuple[Floats, Floats] | None = None


def local_search(problem: Problem, options: PlaceOptions, seed: int) -> Found:
    """The placement that `options` ask for. Raises `BadInput` where there can be none."""
    from stages.solvers.kernels import ready

    ready()
    clock = Clock(options.seconds)
    rows = _rows(problem, options, keep=options.restrained)
    with Crew() as crew:
        if not options.restrained:
            scratch = from_scratch(rows, seed, options.max_steps, clock, crew)
            found = _never_worse(_from_scratch_map(problem, options, rows, scratch), problem, rows)
            return Found(found, sum(s.steps for s in scratch), cut=clock.cut)
        cap = _cap(problem, options)
        part = clock.share(SCRATCH_SHARE)
        scratch = from_scratch(rows, seed, options.max_steps, part, crew)
        between = fronts(rows, seed, options.max_steps, clock, crew)
    layers = _layers(problem, rows, between, _from_scratch_map(problem, options, rows, scratch))
    offers = [layer.options for layer in layers]
    if options.target_balancedness is not None:
        chosen = choice.least_for(offers, options.target_balancedness)
        if cap is not None and _moved(offers, chosen) > cap:
            chosen = choice.best_within(offers, cap)
    else:
        assert cap is not None
        chosen = choice.best_within(offers, cap)
    if cap is not None and _moved(offers, chosen) > cap:
        raise BadInput(
            f"At most {cap} slots may move, but the current placement has more slots in some layers than the new one, "
            "or groups on several nodes: place once without place.max_moved_bytes and place.max_moved_slots."
        )
    new = np.stack([layer.map(int(n)) for layer, n in zip(layers, chosen, strict=True)])
    balance = float(np.mean([each.balance[n] for each, n in zip(offers, chosen, strict=True)]))
    target = options.target_balancedness
    return Found(
        arranged(new, problem.current, problem.topology.ranks),
        sum(s.steps for s in scratch),
        cut=clock.cut or part.cut,
        reached=None if target is None else balance >= target - 1e-9,
        curve=choice.curve(offers),
    )


def movement_curve(problem: Problem, options: PlaceOptions, best: ExpertMap, seed: int) -> tuple[Floats, Floats]:
    """Moved slots and the balancedness they buy, from the current placement to `best` [L, P]: one walk for each aim."""
    rows = _rows(problem, options, keep=True)
    with Crew() as crew:
        between = fronts(rows, seed, len(AIMS), Clock(options.seconds), crew)
    return choice.curve([layer.options for layer in _layers(problem, rows, between, best)])


def balance_from_scratch(problem: Problem, options: PlaceOptions, seed: int, attempts: int) -> Floats:
    """[L]: balancedness of placements from nothing, with so many attempts in each row."""
    rows = _rows(problem, options, keep=False)
    with Crew() as crew:
        searches = from_scratch(rows, seed, attempts, Clock(math.inf), crew)
    top = np.zeros(len(problem.load))
    np.maximum.at(top, [row.layer for row in rows], [search.top for search in searches])
    return np.where(top > 0, problem.mean / np.where(top > 0, top, 1.0), 1.0)


def _rows(problem: Problem, options: PlaceOptions, *, keep: bool) -> list[Row]:
    """What is placed on its own. `keep`: groups stay on the nodes where they are, if each is on one."""
    factor = None if options.aims_at_movement else min(CROSSING, cross_node_factor(problem.topology))
    if options.locality == "none":
        return make_rows(problem.load, problem.capacity, problem.current, problem.topology, None, factor)
    topology, experts, count = problem.topology, problem.experts, problem.num_groups
    slots_of_node = problem.capacity.reshape(len(problem.load), topology.nodes, -1).sum(axis=2).min(axis=1)
    groups.check_groups(experts, count, topology.nodes, int(slots_of_node.min()))
    node_of = groups.nodes_of_current(problem.current, experts, count, topology.nodes) if keep else None
    if node_of is None:
        node_of = groups.spread_groups(problem.load, count, slots_of_node, topology.nodes)
    node_of_expert = np.repeat(node_of, experts // count, axis=1)
    return make_rows(problem.load, problem.capacity, problem.current, topology, node_of_expert, factor)


def _from_scratch_map(
    problem: Problem, options: PlaceOptions, rows: Sequence[Row], searches: Sequence[Scratch]
) -> ExpertMap:
    """[L, P]: what the searches found, relabelled unless `options` say no."""
    layers, slots = problem.current.shape
    ranks = problem.topology.ranks
    new = np.full((layers, ranks, slots // ranks), EMPTY, dtype=np.int64)
    for row, search in zip(rows, searches, strict=True):
        here = slice(row.first, row.first + len(row.capacity))
        new[row.layer, here, : search.slot.shape[1]] = row.as_logical(search.slot)
    flat = new.reshape(layers, slots)
    if not options.relabels:
        return flat
    within = options.locality != "none"
    return relabelled(flat, problem.current, problem.experts, problem.topology, within_nodes=within)


def _never_worse(new: ExpertMap, problem: Problem, rows: Sequence[Row]) -> ExpertMap:
    """`new`, but the current placement in the layers where that fits and is as good already."""
    ranks = problem.topology.ranks
    top, top_now = (gpu_load(problem.load, each, ranks).max(axis=1) for each in (new, problem.current))
    fits = np.ones(len(new), dtype=bool)
    np.logical_and.at(fits, [row.layer for row in rows], [row.current is not None for row in rows])
    return np.where((fits & (top_now <= top))[:, None], problem.current, new)


def _cap(problem: Problem, options: PlaceOptions) -> int | None:
    """How many slots may move."""
    caps = [options.max_moved_slots]
    if options.max_moved_bytes is not None:
        caps.append(options.max_moved_bytes // problem.expert_bytes)
    return min((cap for cap in caps if cap is not None), default=None)


@dataclass(frozen=True)
class _Layer:
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


def _layers(problem: Problem, rows: Sequence[Row], between: Sequence[Front | None], scratch: ExpertMap) -> list[_Layer]:
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
        out.append(_Layer(options, source, of_layer, found, picks, scratch[layer], per_rank))
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


def _moved(offers: Sequence[choice.Options], chosen: Ints) -> float:
    return float(sum(each.moved[n] for each, n in zip(offers, chosen, strict=True)))
