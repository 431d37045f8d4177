"""What a placement is worth: its metrics, its figures, and its story in Markdown.

Only what the stage's key holds may appear here, since a cached result is shown for every config with that key.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from stages import figures
from stages.balance import ENGINE_METRICS, balancedness_per_layer, engine_metrics, gpu_load, lower_bound
from stages.expert_map import duplicate_replicas, moved_slots, replica_counts
from stages.gpu_balance import GpuBalance
from stages.load import LoadStats
from stages.place.search_report import SearchReport, report_search
from stages.placement import Placement
from stages.solvers.fit import fitted_load
from stages.solvers.local_search import Found
from stages.solvers.solver import Solver

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Judgement:
    """A placement under all loads. `balance`: GPU loads before and after; `next_window`: balancedness of the
    later half of the windows under a placement from the earlier half, if there are two windows; `kept`: layers that
    stayed as they were because they had less than `min_gain` to gain; `load`: the rule by which windows counted;
    `search`: what `local_search` has to tell."""

    placement: Placement
    ranks: int
    balance: GpuBalance
    optimality_gap: float
    next_window: float | None
    min_gain: float
    kept: int
    load: str
    search: SearchReport | None
    slots: int

    def between(self, placement: Placement, ranks: int, before: Floats) -> Judgement:
        """The same of a placement that resizes: what moves counts in the frame of `ranks` ranks that `placement` has."""
        return replace(self, placement=placement, ranks=ranks, balance=replace(self.balance, before=before))

    def metrics(self) -> dict[str, float]:
        per_layer = balancedness_per_layer(self.balance.after)
        new, current, experts = self.placement.physical_to_logical_map, self.placement.current, self.placement.experts
        metrics = {
            "balancedness": float(per_layer.mean()),
            "balancedness_worst_layer": float(per_layer.min()),
            "balancedness_before": float(balancedness_per_layer(self.balance.before).mean()),
            "optimality_gap": self.optimality_gap,
            "moved_slots": float(moved_slots(current, new, experts, self.ranks)),
            "duplicate_replicas": float(duplicate_replicas(new, experts, self.ranks)),
            "redundant_experts_used": float(self.slots - experts),
        }
        if self.next_window is not None:
            metrics["balancedness_next_window"] = self.next_window
        if self.min_gain:
            metrics["layers_kept"] = float(self.kept)
        return metrics | (self.search.metrics() if self.search else {})

    def tags(self) -> dict[str, str]:
        tags = self.search.tags() if self.search else {}
        if self.min_gain:
            tags["place.kept_current"] = f"{self.kept} of {self.placement.layers} layers"
        return tags

    def figures(self) -> dict[str, Figure]:
        replicas = replica_counts(self.placement.physical_to_logical_map, self.placement.experts)
        drawn = {
            "gpu_load": figures.side_by_side(
                _relative(self.balance.before), _relative(self.balance.after), (f"Before: balancedness {_mean(self.balance.before)}", f"After: balancedness {_mean(self.balance.after)}"),
                x="GPU", y="MoE layer", unit="GPU load / mean of its layer", bars=_worst(self.balance),
            ),
        }  # fmt: skip
        if replicas.max() > 1:
            drawn["replicas"] = figures.heat_map(
                replicas.astype(np.float64), "Replicas of each expert", "logical expert", "MoE layer", "slots"
            )
        return drawn | (self.search.figures() if self.search else {})


def judge(load: LoadStats, placement: Placement, solver: Solver, found: Found) -> Judgement:
    """Judge `placement`, and `solver` on windows it has not seen."""
    total = load.total()
    ranks = solver.topology.ranks
    after = gpu_load(total, placement.physical_to_logical_map, ranks)
    slots, per_rank = solver.capacity.sum(axis=1), solver.capacity.max(axis=1)
    bound = lower_bound(total, slots, ranks, per_rank, reached=after.max(axis=1))
    return Judgement(
        placement,
        ranks,
        balance=GpuBalance(gpu_load(total, placement.current, ranks), after, bound),
        optimality_gap=optimality_gap(after, bound),
        next_window=balancedness_next_window(load, solver),
        min_gain=solver.options.min_gain,
        kept=found.kept,
        load=solver.options.load,
        search=report_search(load, placement, solver, found) if solver.options.algorithm == "local_search" else None,
        slots=solver.slots,
    )


def optimality_gap(gpu: Floats, bound: Floats) -> float:
    """Max GPU load / the bound [L] - 1 of the worst layer; 0 for layers without load. `gpu`: [L, R]."""
    loaded = bound > 0
    gap = np.where(loaded, gpu.max(axis=1) / np.where(loaded, bound, 1.0) - 1, 0.0)
    return max(0.0, float(gap.max()))  # rounding can leave an even layer a hair below its bound


def balancedness_next_window(load: LoadStats, solver: Solver) -> float | None:
    """Balancedness of the later half of the windows under what `solver` makes of the earlier half, as engines do."""
    half = load.windows // 2
    if half == 0:
        return None
    earlier, later = load.logical_count[:half], load.logical_count[half:].sum(axis=0)
    fitted = solver.solve(fitted_load(earlier, solver.options)).map
    return float(balancedness_per_layer(gpu_load(later.astype(np.float64), fitted, solver.topology.ranks)).mean())


def note(judgement: Judgement, headline: str, metrics: dict[str, float]) -> str:
    """The story in Markdown. `headline` says what placed what where."""
    layer_after = balancedness_per_layer(judgement.balance.after)
    layer_before = balancedness_per_layer(judgement.balance.before)
    worst, was_worst = int(layer_after.argmin()), int(layer_before.argmin())
    engines_before, engines_after = engine_metrics(judgement.balance.before), engine_metrics(judgement.balance.after)
    balancedness = (
        f"**Balancedness {metrics['balancedness_before']:.4f} → {metrics['balancedness']:.4f}** (mean of layers; "
        f"1 is perfect). Worst: MoE layer {worst} at {layer_after[worst]:.4f}; "
        f"before, MoE layer {was_worst} at {layer_before[was_worst]:.4f}."
    )
    lines = [
        headline,
        "",
        balancedness,
        "",
        "| balance of GPU loads | before | after |",
        "|---|---:|---:|",
        *(f"| {text} | {engines_before[key]:.4f} | {engines_after[key]:.4f} |" for key, text in ENGINE_METRICS.items()),
        "",
        f"- {metrics['moved_slots']:,.0f} moved slots; {metrics['redundant_experts_used']:,.0f} redundant experts a layer",
        f"- largest GPU load: at most {metrics['optimality_gap']:.2%} above the proven lower bound, in every layer",
        f"- {metrics['duplicate_replicas']:,.0f} slots hold an expert that their GPU has already",
    ]
    if judgement.next_window is not None:
        lines.append(
            "- balancedness on the later half of the windows, with only the earlier half to place from: "
            f"{judgement.next_window:.4f}"
        )
    if judgement.load != "mean":
        lines.append(
            f"- placed for the windows as `place.load={judgement.load}` says; all that is told here is under all of them"
        )
    if judgement.min_gain:
        lines.append(
            f"- {judgement.kept} of {judgement.placement.layers} layers keep the current placement: "
            f"they had less than {judgement.min_gain:g} of balancedness to gain"
        )
    return (
        "\n".join([*lines, *(f"- {line}" for line in judgement.search.lines())] if judgement.search else lines) + "\n"
    )


def _worst(balance: GpuBalance) -> figures.Bars:
    """The layer that is least even after, GPU by GPU, against its bound."""
    layer = balance.least_even
    before, after, bound = balance.of_layer(layer)
    title = f"MoE layer {layer}, the least even after, and what the fullest GPU of no placement can beat"
    return figures.Bars({"before": before, "after": after}, ("bound", bound), title, "GPU", "load / mean")


def _mean(gpu: Floats) -> str:
    return f"{balancedness_per_layer(gpu).mean():.4f}"


def _relative(gpu: Floats) -> Floats:
    """[L, R]: GPU load over the mean of its layer; 1 in a layer without load."""
    mean = gpu.mean(axis=1, keepdims=True)
    return np.where(mean > 0, gpu / np.where(mean > 0, mean, 1.0), 1.0)
