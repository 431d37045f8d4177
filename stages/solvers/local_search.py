"""The search for a placement: the best balance there is, or what little movement from the current placement buys.

Without a limit on movement every layer is placed from nothing, as well as time allows, and the shares of its ranks are
given to the ranks that hold most of them. Where movement counts, each layer has options between its current placement
and that best one, and the moves are made in the layers where they pay most.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stages.balance import gpu_load
from stages.errors import BadInput
from stages.expert_map import EMPTY, ExpertMap
from stages.solvers import choice, groups
from stages.solvers.clock import Clock, Crew
from stages.solvers.front import AIMS, fronts
from stages.solvers.movement import arranged, cross_node_factor, relabelled
from stages.solvers.offers import layers_of
from stages.solvers.options import PlaceOptions
from stages.solvers.problem import Problem
from stages.solvers.rows import Row, make_rows
from stages.solvers.scratch import Scratch, advance, searches_of

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

CROSSING = 1.5
"""Under a cap on moved slots or bytes: what one counts that crosses nodes, at most, where two moves are compared."""

CURVE_SECONDS = 0.3
"""What drawing the curve of movement may take beside the search, at most."""

ENDPOINT, SCRATCH_SHARE = 50, 0.4
"""Where movement counts, the placements from nothing are but where the options end: attempts for them, and the part of
the time that they take at most."""


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
    searches = searches_of(rows, seed, options.max_steps)
    with Crew() as crew:
        if options.restrained:
            return _restrained(problem, options, seed, rows, searches, clock, crew)
        advance(searches, options.max_steps, clock, crew)
    found = _never_worse(_from_scratch_map(problem, options, rows, searches), problem, options)
    return Found(found, _attempts(searches), cut=clock.cut)


def _restrained(
    problem: Problem,
    options: PlaceOptions,
    seed: int,
    rows: Sequence[Row],
    searches: Sequence[Scratch],
    clock: Clock,
    crew: Crew,
) -> Found:
    """The best under the caps, or what reaches the target with little movement."""
    target, cap = options.target_balancedness, _cap(problem, options)
    part = clock.share(SCRATCH_SHARE)
    advance(searches, min(ENDPOINT, options.max_steps or ENDPOINT), part, crew)
    between = fronts(problem, rows, _factor(problem, options), seed, options.max_steps, clock, crew)
    layers = layers_of(problem, rows, between, _from_scratch_map(problem, options, rows, searches))
    if target is not None and np.mean([layer.options.balance[-1] for layer in layers]) < target:
        # What is between falls short: then the best there is from nothing, as without a limit on movement.
        advance(searches, options.max_steps, clock, crew)
        layers = layers_of(problem, rows, between, _from_scratch_map(problem, options, rows, searches))
    offers = [layer.options for layer in layers]
    chosen = choice.choose(offers, target, cap)
    if cap is not None and sum(each.moved[n] for each, n in zip(offers, chosen, strict=True)) > cap:
        raise BadInput(
            f"At most {cap} slots may move, but the current placement has more slots in some layers than the new one, "
            "or groups on several nodes: place once without place.max_moved_bytes and place.max_moved_slots."
        )
    new = np.stack([layer.map(int(n)) for layer, n in zip(layers, chosen, strict=True)])
    balance = float(np.mean([each.balance[n] for each, n in zip(offers, chosen, strict=True)]))
    return Found(
        arranged(new, problem.current, problem.topology.ranks),
        _attempts(searches),
        cut=clock.cut or part.cut,
        reached=None if target is None else balance >= target - 1e-9,
        curve=choice.curve(offers),
    )


def movement_curve(problem: Problem, options: PlaceOptions, best: ExpertMap, seed: int) -> tuple[Floats, Floats]:
    """Moved slots and the balancedness they buy, from the current placement to `best` [L, P]: one walk for each aim."""
    rows = _rows(problem, options, keep=True)
    clock = Clock(min(CURVE_SECONDS, options.seconds))
    with Crew() as crew:
        between = fronts(problem, rows, _factor(problem, options), seed, len(AIMS), clock, crew)
    return choice.curve([layer.options for layer in layers_of(problem, rows, between, best)])


def balance_from_scratch(problem: Problem, options: PlaceOptions, seed: int, attempts: int) -> Floats:
    """[L]: balancedness of placements from nothing, with so many attempts in each row."""
    rows = _rows(problem, options, keep=False)
    searches = searches_of(rows, seed, attempts)
    with Crew() as crew:
        advance(searches, attempts, Clock(math.inf), crew)
    top = np.zeros(len(problem.load))
    np.maximum.at(top, [row.layer for row in rows], [search.top for search in searches])
    return np.where(top > 0, problem.mean / np.where(top > 0, top, 1.0), 1.0)


def _rows(problem: Problem, options: PlaceOptions, *, keep: bool) -> list[Row]:
    """What is placed on its own. `keep`: groups stay on the nodes where they are, in layers where each is on one."""
    if options.locality == "none":
        return make_rows(problem.load, problem.capacity, problem.current, problem.topology)
    topology, experts, count = problem.topology, problem.experts, problem.num_groups
    slots_of_node = problem.capacity.reshape(len(problem.load), topology.nodes, -1).sum(axis=2).min(axis=1)
    groups.check_groups(experts, count, topology.nodes, int(slots_of_node.min()))
    node_of = groups.spread_groups(problem.load, count, slots_of_node, topology.nodes)
    if keep:
        together = groups.kept_together(problem.current, experts, count, topology.nodes)
        now = groups.nodes_of_groups(problem.current, experts, count, topology.nodes).argmax(axis=2)
        node_of = np.where(together[:, None], now, node_of)
    node_of_expert = np.repeat(node_of, experts // count, axis=1)
    return make_rows(problem.load, problem.capacity, problem.current, topology, node_of_expert)


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


def _never_worse(new: ExpertMap, problem: Problem, options: PlaceOptions) -> ExpertMap:
    """`new`, but the current placement in the layers where that may stay and is as good already."""
    ranks = problem.topology.ranks
    top, top_now = (gpu_load(problem.load, each, ranks).max(axis=1) for each in (new, problem.current))
    return np.where((may_stay(problem, options) & (top_now <= top))[:, None], problem.current, new)


def may_stay(problem: Problem, options: PlaceOptions) -> npt.NDArray[np.bool_]:
    """[L]: whether the current placement has no more slots than there are, and groups on one node where asked to."""
    filled = (problem.current != EMPTY).reshape(*problem.capacity.shape, -1).sum(axis=2)
    fits = (filled <= problem.capacity).all(axis=1)
    if options.locality == "none":
        return fits
    nodes = problem.topology.nodes
    return fits & groups.kept_together(problem.current, problem.experts, problem.num_groups, nodes)


def _factor(problem: Problem, options: PlaceOptions) -> float | None:
    """What crossing nodes costs where moves are compared; None for what the links say."""
    return None if options.aims_at_movement else min(CROSSING, cross_node_factor(problem.topology))


def _cap(problem: Problem, options: PlaceOptions) -> int | None:
    """How many slots may move."""
    caps = [options.max_moved_slots]
    if options.max_moved_bytes is not None:
        caps.append(options.max_moved_bytes // problem.expert_bytes)
    return min((cap for cap in caps if cap is not None), default=None)


def _attempts(searches: Sequence[Scratch]) -> int:
    return sum(search.steps for search in searches)
