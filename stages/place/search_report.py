"""What `local_search` has to tell beside the placement: what moves and redundant experts buy, and how it ended."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from stages import figures
from stages.balance import balancedness_per_layer, gpu_load
from stages.expert_map import moved_slots, slots_for
from stages.load import LoadStats
from stages.placement import Placement
from stages.solvers.fit import fitted_load
from stages.solvers.local_search import Found, movement_curve
from stages.solvers.slots import Budget
from stages.solvers.solver import Solver

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Floats = npt.NDArray[np.float64]
MEGA = 1e6


@dataclass(frozen=True)
class SearchReport:
    """`moved`, `balance` [N]: the curve of what moved slots buy, under the loads that were placed for, and `here` the
    two of this placement; `budget`: what redundant experts buy; `slots` [L] and `bytes_per_gpu` of expert weights;
    `lost`: the balancedness that keeping groups within nodes costs."""

    found: Found
    target: float | None
    seconds: float
    moved: Floats
    balance: Floats
    here: tuple[float, float]
    budget: Budget
    experts: int
    expert_bytes: int
    slots: npt.NDArray[np.int64]
    bytes_per_gpu: int
    lost: float | None

    @property
    def redundant(self) -> int:
        """Redundant experts in all layers together."""
        return int((self.slots - self.experts).sum())

    @property
    def knee(self) -> int:
        """Redundant experts in all layers, spent where they help, beyond which they help less than on average."""
        return self._redundant_with(self.budget.knee)

    @property
    def step_bytes(self) -> int:
        """Bytes that a step, a slot more on every GPU in one layer, adds to each of them."""
        return self.expert_bytes

    def metrics(self) -> dict[str, float]:
        metrics = {
            "search_attempts": float(self.found.attempts),
            "clock_cut": float(self.found.cut),
            "redundant_experts_total": float(self.redundant),
            "redundant_experts_knee": float(self.knee),
            "expert_bytes_per_gpu": float(self.bytes_per_gpu),
        }
        if self.found.reached is not None:
            metrics["target_reached"] = float(self.found.reached)
        if self.lost is not None:
            metrics["balancedness_lost_to_locality"] = self.lost
        return metrics

    def tags(self) -> dict[str, str]:
        tags = {"place.ended_by": "clock" if self.found.cut else "search"}
        if self.found.reached is not None:
            tags["place.target_reached"] = "yes" if self.found.reached else "no"
        return tags

    def lines(self) -> list[str]:
        lines = [
            (
                f"expert weights: {self.bytes_per_gpu / MEGA:,.0f} MB on a GPU, with {self.redundant:,} redundant experts in "
                f"all layers; one more slot on every GPU in one layer takes {self.step_bytes / MEGA:,.4g} MB of each"
            ),
            f"redundant experts help less than on average beyond {self.knee:,} in all layers (the knee)",
        ]
        if self.lost is not None:
            lines.append(f"keeping expert groups within nodes costs {self.lost:.4f} of balancedness")
        if self.found.reached is not None:
            word = "is reached" if self.found.reached else "cannot be reached: this is the nearest that was found"
            lines.append(f"the target, a balancedness of {self.target:g}, {word}")
        if self.found.cut:
            lines.append(
                f"the search was cut by the clock (place.seconds={self.seconds:g}) after {self.found.attempts:,} "
                "attempts: another run may find another placement"
            )
        return lines

    def figures(self) -> dict[str, Figure]:
        moved, balance = self.here
        return {
            "movement": figures.curves(
                {"moves made where they pay most": (self.moved * self.expert_bytes / MEGA, self.balance)},
                {"this placement": (moved * self.expert_bytes / MEGA, balance)},
                "What moving buys", "moved bytes (MB)", "balancedness",
            ),
            "redundancy": self._redundancy(),
        }  # fmt: skip

    def _redundancy(self) -> Figure:
        best, even, layers = self.budget.best, self.budget.even, len(self.slots)
        x = np.array([self._redundant_with(n) for n in range(len(best))], dtype=np.float64)
        each = np.arange(len(even)) * layers
        return figures.curves(
            {"spent where they help most": (x, best), "the same in every layer": (x[each], even)},
            {
                f"knee: {self.knee:,}": (float(self.knee), float(best[self.budget.knee])),
                "this placement": (float(self.redundant), self.here[1]),
            },
            "What redundant experts buy",
            f"redundant experts in all layers (each {self.budget.ranks} add {self.step_bytes / MEGA:,.4g} MB to a GPU)",
            "balancedness",
        )  # fmt: skip

    def _redundant_with(self, steps: int) -> int:
        return len(self.slots) * (self.budget.base - self.experts) + steps * self.budget.ranks


def report_search(load: LoadStats, placement: Placement, solver: Solver, found: Found) -> SearchReport:
    """Draw the two curves for the loads that were placed for."""
    options = solver.options
    fitted = np.asarray(fitted_load(load.logical_count, options), dtype=np.float64)
    ranks, experts = solver.topology.ranks, load.experts
    problem = solver.problem(fitted, solver.current)

    def balance_of(which: npt.NDArray[np.int64]) -> float:
        return float(balancedness_per_layer(gpu_load(fitted, which, ranks)).mean())

    moved, balance = found.curve or movement_curve(problem, options, found.map, solver.seed)
    lost = None
    if options.locality != "none":
        free = replace(solver, options=replace(options, locality="none")).solve(fitted).map
        lost = balance_of(free) - balance_of(found.map)
    even = slots_for(experts, 0, ranks) // ranks
    slots = solver.capacity.sum(axis=1)
    return SearchReport(
        found,
        options.target_balancedness,
        options.seconds,
        moved,
        balance,
        (moved_slots(solver.current, found.map, experts, ranks), balance_of(found.map)),
        solver.budget or solver.budget_curve(fitted, int(slots.max()) // ranks - even),
        experts,
        solver.expert_bytes,
        slots,
        int(solver.capacity.sum(axis=0).max()) * solver.expert_bytes,
        lost,
    )
