"""The least time of the busiest link by any fractional choice of senders, entries and parents: a linear program.

Crossings may be split over senders and entries, deliveries inside a node over all that could make them; every link has
to do no more than T hops' time, which is minimised (HiGHS).
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import scipy.sparse
from scipy.optimize import linprog

from stages.needs import Needs
from stages.plan.groups import group_needs
from stages.topology import Topology


class _Program:
    def __init__(self) -> None:
        self.entries: list[tuple[int, int, float]] = []
        self.equal: list[tuple[int, int, float]] = []
        self.limits: dict[object, int] = {}
        self.given: dict[int, float] = defaultdict(float)
        self.totals: list[float] = []
        self.variables = 1  # the first is T

    def variable(self) -> int:
        self.variables += 1
        return self.variables - 1

    def limit(self, name: object, variable: int, factor: float) -> None:
        self.entries.append((self.limits.setdefault(name, len(self.limits)), variable, factor))

    def load(self, link: tuple[str, int], variable: int, seconds: float) -> None:
        """`link` has to do its part of `variable` within T."""
        if link not in self.limits:
            self.limit(link, 0, -1.0)
        self.limit(link, variable, seconds)

    def fixed(self, link: tuple[str, int], seconds: float) -> None:
        if link not in self.limits:
            self.limit(link, 0, -1.0)
        self.given[self.limits[link]] -= seconds

    def total(self, variables: list[int], value: float) -> None:
        self.equal += [(len(self.totals), variable, 1.0) for variable in variables]
        self.totals.append(value)

    def solve(self) -> float:
        def matrix(entries: list[tuple[int, int, float]], rows: int) -> scipy.sparse.csr_matrix:
            row, column, value = zip(*entries, strict=True)
            return scipy.sparse.coo_matrix((value, (row, column)), shape=(rows, self.variables)).tocsr()

        objective = np.zeros(self.variables)
        objective[0] = 1
        bounds = np.array([self.given[row] for row in range(len(self.limits))])
        found = linprog(
            objective,
            A_ub=matrix(self.entries, len(self.limits)),
            b_ub=bounds,
            A_eq=matrix(self.equal, len(self.totals)),
            b_eq=self.totals,
            method="highs-ipm",
        )
        assert found.status == 0, found.message
        return float(found.fun)


def fractional_bound(needs: Needs, topology: Topology, expert_bytes: int) -> float:
    """Seconds of the busiest link, at least, for any relay plan that crosses as little as can be."""
    links, gpus, holders = topology.links, topology.gpus_per_node, needs.holders
    net, fabric, node_net = (
        expert_bytes / (speed * 1e9)
        for speed in (links.between_nodes.gb_per_s, links.within_node.gb_per_s, topology.node_gb_per_s)
    )
    groups = group_needs(needs, gpus)
    program = _Program()
    for g, crosses in enumerate(groups.crosses):
        node, members = int(groups.node[g]), needs.rank[groups.need_begin[g] : groups.need_end[g]].tolist()
        entries: dict[int, list[int]] = defaultdict(list)
        if crosses:
            program.fixed(("node in", node), node_net)
            senders = holders.rank[groups.holder_begin[g] : groups.holder_end[g]].tolist()
            chosen = [program.variable() for _ in senders]
            for sender, variable in zip(senders, chosen, strict=True):
                program.load(("net out", sender), variable, net)
                program.load(("node out", sender // gpus), variable, node_net)
                if topology.rails:
                    entries[node * gpus + sender % gpus].append(variable)
            program.total(chosen, 1)
            if not topology.rails:
                for rank in range(node * gpus, (node + 1) * gpus):
                    entries[rank].append(program.variable())
                program.total([variable for variables in entries.values() for variable in variables], 1)
        for rank in members:
            program.fixed(("fabric in", rank), fabric)
        served = []  # by the crossing, or by whoever has it
        for rank, variables in entries.items():
            for variable in variables:
                program.load(("net in", rank), variable, net)
                if rank in members:
                    program.load(("fabric in", rank), variable, -fabric)
                    served.append(variable)
        near = holders.rank[groups.near_begin[g] : groups.near_end[g]].tolist()
        for rank in {*members, *near, *entries}:
            delivers = program.variable()
            program.load(("fabric out", rank), delivers, fabric)
            served.append(delivers)
            if rank in entries and rank not in members:  # it has what it passes on only where it enters there
                program.limit(("has", g, rank), delivers, 1.0)
                for variable in entries[rank]:
                    program.limit(("has", g, rank), variable, -float(len(members)))
        program.total(served, len(members))
    return program.solve()
