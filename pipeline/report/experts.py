"""How unevenly the tokens fall on the experts, and how many replicas each was given."""

from __future__ import annotations

import numpy as np

from pipeline.report.colours import around_mean, counted
from pipeline.report.frame import named
from pipeline.report.heat import heat_map
from pipeline.report.lines import Series, curves, lying
from pipeline.report.markup import Html, join, tag
from pipeline.report.units import count, factor, share
from stages.expert_map import replica_counts
from stages.load import LoadStats
from stages.placement import Placement

MOST_BARS = 12


def skew(load: LoadStats) -> Html:
    total = load.total()
    mean = total.mean(axis=1, keepdims=True)
    relative = np.where(mean > 0, total / np.where(mean > 0, mean, 1.0), 1.0)
    ranked = -np.sort(-relative, axis=1)
    worst = int(ranked[:, 0].argmax())
    busiest = max(1, round(load.experts / 10))
    said = (
        f"{count(load.windows, 'window')}, {count(load.layers, 'MoE layer')}, {count(load.experts, 'expert')}. The busiest "
        f"{count(busiest, 'expert')} of a layer {'gets' if busiest == 1 else 'get'} {share(ranked[:, :busiest].sum(axis=1).mean() / load.experts)} of its "
        f"load on average, where {share(busiest / load.experts)} would be even; the busiest of all gets "
        f"{factor(float(ranked[worst, 0]))} the mean of its layer ({worst})."
    )
    taken = np.concatenate([np.zeros((load.layers, 1)), np.cumsum(ranked, axis=1) / load.experts], axis=1)
    ordered = curves(
        join(
            "Share of the load that the busiest experts take: in ", named(f"the most skewed layer, {worst}", "hot"), ", in the ",
            named("mean of layers", "now"), ", and if all were ", named("even", "limit"),
        ),
        [
            Series(taken[worst], "hot", f"layer {worst}"),
            Series(taken.mean(axis=0), "now", "mean"),
            Series(np.linspace(0, 1, load.experts + 1), "limit", "even"),
        ],
        "experts, the busiest first",
        "of a layer's load",
        "{:.0%}".format,
        spoken=said,
    )  # fmt: skip
    every = heat_map(
        tag("b", "Load of every expert"),
        relative,
        around_mean("expert load / mean of its layer", float(relative.max())),
        "logical expert",
        "MoE layer",
        lambda layer, expert, value: f"layer {layer}, expert {expert}: {factor(value)}",
        mark="Busiest",
    )
    return join(tag("p", said), tag("div", every, ordered, class_="pair"))


def replicas(placement: Placement) -> Html:
    counts = replica_counts(placement.deployed, placement.experts)
    slots = counts.sum(axis=1)
    each = f"{slots.min():,}" if slots.min() == slots.max() else f"{slots.min():,} to {slots.max():,}"
    said = f"{each} slots for {count(placement.experts, 'expert')} in each of {count(placement.layers, 'layer')}"
    most = int(counts.max())
    if most <= 1:
        return tag("p", f"{said}: every expert has one.")
    drawn = heat_map(
        tag("b", "Replicas of every expert"),
        counts.astype(np.float64),
        counted("slots that hold the expert", most),
        "logical expert",
        "MoE layer",
        lambda layer, expert, value: f"layer {layer}, expert {expert}: {count(value, 'slot')}",
        mark="Most",
    )
    times = np.bincount(counts.reshape(-1), minlength=most + 1)
    bars = [(count(n, "slot"), float(t), count(int(t), "expert"), "now") for n, t in enumerate(times) if t]
    several = tag("div", tag("p", tag("b", "Experts of all layers by their slots")), lying(bars[:MOST_BARS]))
    return join(tag("p", f"{said}."), tag("div", drawn, several, class_="pair"))
