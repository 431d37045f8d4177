"""From loads to a placement, by the algorithm that the config names: one solver for the place and the replay stage."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from stages.balance import balancedness_per_layer, gpu_load
from stages.errors import BadInput
from stages.expert_map import ExpertMap, contiguous_map, slots_for
from stages.load import LoadStats
from stages.model import ModelSpec
from stages.solvers.fit import Loads, fitted_load
from stages.solvers.given import current_file_or_loads, current_map, placement_file
from stages.solvers.local_search import Found, balance_from_scratch, local_search, may_stay
from stages.solvers.movement import relabelled
from stages.solvers.options import PlaceOptions
from stages.solvers.own import is_own, policy_of
from stages.solvers.problem import Problem
from stages.solvers.slots import (
    MORE,
    Budget,
    Floats,
    Ints,
    budget_of,
    capacity_of,
    capacity_of_current,
    contiguous_within,
    spent_where_it_helps,
    total_steps,
)
from stages.topology import Topology

BUDGET_ATTEMPTS, BUDGET_EFFORT = 24, 10_000_000
"""Attempts a layer for each step of the budget curve; fewer where attempts x slots x ranks would be more than that."""
MOST_TRIED = 1_000
_TRIED: dict[tuple[object, ...], Floats] = {}
"""Balancedness [L] of what was tried for budget curves in this process: those of a sweep's points have most in common."""


@dataclass(frozen=True)
class Solver:
    """Places loads in the slots that `capacity` [L, R] gives each rank, starting from `current` [L, P].

    `budget`: what redundant experts buy, where `local_search` has the choice. `hierarchical`: EPLB keeps each group of
    experts on one node.
    """

    options: PlaceOptions
    topology: Topology
    num_groups: int
    expert_bytes: int
    seed: int
    experts: int
    capacity: Ints
    current: ExpertMap
    budget: Budget | None
    hierarchical: bool
    computed: Callable[[Loads], ExpertMap] | None

    @property
    def slots(self) -> int:
        return self.current.shape[1]

    def solve(self, load: Loads, current: ExpertMap | None = None) -> Found:
        """The placement of `load` [L, E], from `current` if something else is in place by now."""
        now = self.current if current is None else current
        if self.computed is None:
            found = local_search(self.problem(load, now), self.options, self.seed)
        else:
            new = self.computed(load)
            if self.options.relabels:
                new = relabelled(new, now, self.experts, self.topology, within_nodes=self.hierarchical)
            found = Found(new)
        return self._without_small_gains(found, np.asarray(load, dtype=np.float64), now)

    def budget_curve(self, load: Loads, even: int) -> Budget:
        """What redundant experts buy in [L, E] `load`, up to some steps beyond `even` in each layer."""
        as_floats = np.asarray(load, dtype=np.float64)
        of_load = (as_floats.shape, hashlib.sha256(as_floats.tobytes()).digest())

        def balance_with(slots: Ints) -> Floats:
            tried = (of_load, slots.tobytes(), repr(self.topology), self.num_groups, self.options.locality, self.seed)
            if tried not in _TRIED:
                if len(_TRIED) == MOST_TRIED:
                    _TRIED.clear()
                capacity = capacity_of(slots, self.topology.ranks)
                current = contiguous_within(capacity, self.experts)
                problem = replace(self.problem(as_floats, current), capacity=capacity)
                attempts = min(BUDGET_ATTEMPTS, max(1, BUDGET_EFFORT // int(slots.max() * self.topology.ranks)))
                _TRIED[tried] = balance_from_scratch(problem, self.options, self.seed, attempts)
            return _TRIED[tried]

        return budget_of(balance_with, len(as_floats), self.experts, self.topology.ranks, even + MORE + 1)

    def problem(self, load: Loads, current: ExpertMap) -> Problem:
        as_floats = np.asarray(load, dtype=np.float64)
        return Problem(as_floats, self.capacity, current, self.topology, self.num_groups, self.expert_bytes)

    def _without_small_gains(self, found: Found, load: Floats, current: ExpertMap) -> Found:
        """`found`, but `current` in the layers that would gain less than `place.min_gain`."""
        if not self.options.min_gain:
            return found
        ranks = self.topology.ranks
        gain, before = (balancedness_per_layer(gpu_load(load, each, ranks)) for each in (found.map, current))
        keeps = (gain - before < self.options.min_gain) & may_stay(self.problem(load, current), self.options)
        return replace(found, map=np.where(keeps[:, None], current, found.map), kept=int(keeps.sum()))


def solver_of(options: PlaceOptions, model: ModelSpec, topology: Topology, seed: int, load: LoadStats) -> Solver:
    """The solver that `place.algorithm` names, for loads like `load`. Raises `BadInput` for what cannot be."""
    layers, experts, ranks = load.layers, load.experts, topology.ranks
    given = None if options.resizes else current_file_or_loads(options, load, ranks, model)
    slots = np.full(layers, slots_for(experts, options.redundant_experts, ranks))
    if options.algorithm != "file" and slots[0] > ranks * experts:
        raise BadInput(
            f"place.redundant_experts={options.redundant_experts} is more than there is a use for: with "
            f"{(ranks - 1) * experts} each of the {ranks} ranks holds all {experts} experts."
        )
    computed: Callable[[Loads], ExpertMap] | None = None
    hierarchical = False
    if options.algorithm == "file":
        from_file = placement_file(options, load, ranks, model)
        slots[:] = from_file.shape[1]
        computed = _always(from_file)
    elif options.algorithm == "contiguous":
        computed = _always(contiguous_map(layers, experts, int(slots[0])))
    elif options.algorithm == "eplb":
        hierarchical = model.num_groups % topology.nodes == 0
        if hierarchical and experts % model.num_groups:
            raise BadInput(
                f"model.num_groups={model.num_groups} does not divide the {experts} experts of the loads evenly."
            )
        computed = _eplb(int(slots[0]), model.num_groups, topology)
    elif is_own(options.algorithm):
        computed = policy_of(options.algorithm, experts, int(slots[0]), topology)
    else:
        from stages.solvers.kernels import ready

        ready()
    if options.relabels:
        import scipy.optimize  # noqa: F401 (later calls find it, and it is no part of the time to solve)
    capacity = capacity_of(slots, ranks)
    solver = Solver(
        options, topology, model.num_groups, model.expert_bytes, seed, experts, capacity, capacity, None,
        hierarchical, computed,
    )  # fmt: skip
    budget = None
    if options.redundancy == "total":
        total = total_steps(options, layers, experts, ranks)
        budget = solver.budget_curve(fitted_load(load.logical_count, options), -(-total // layers) * 3)
        steps = spent_where_it_helps(budget, total)
        capacity = capacity_of(budget.base + steps * ranks, ranks)
    elif options.redundancy == "current" and given is not None:
        capacity = capacity_of_current(given, ranks)
        return replace(solver, capacity=capacity, current=given)
    return replace(solver, capacity=capacity, current=current_map(given, options, experts, capacity), budget=budget)


def target_of(topology: Topology, ranks: int | None) -> Topology:
    """The part of `topology` that its first `ranks` GPUs are: whole nodes, or GPUs of one node."""
    if ranks is None or ranks == topology.ranks:
        return topology
    gpus = topology.gpus_per_node
    if ranks > topology.ranks or (ranks > gpus and ranks % gpus):
        raise BadInput(
            f"place.ranks={ranks} is not possible: allowed are multiples of the {gpus} GPUs of a node up to "
            f"{topology.ranks}, and less than one node."
        )
    return replace(topology, nodes=max(1, ranks // gpus), gpus_per_node=min(gpus, ranks))


def _always(new: ExpertMap) -> Callable[[Loads], ExpertMap]:
    return lambda _: new


def _eplb(slots: int, num_groups: int, topology: Topology) -> Callable[[Loads], ExpertMap]:
    from stages.solvers.eplb import rebalance_experts  # imports torch, which is no part of the time to solve

    def solve(counts: Loads) -> ExpertMap:
        return rebalance_experts(counts, slots, num_groups, topology.nodes, topology.ranks).physical_to_logical_map

    return solve
