"""GPU load before and after: every layer and GPU, the worst layer against its bound, the fullest GPU of each layer, and
the balance as each engine defines it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.report.colours import around_mean
from pipeline.report.frame import named
from pipeline.report.heat import heat_map
from pipeline.report.lines import Level, Series, bars, curves
from pipeline.report.markup import Html, join, table, tag
from pipeline.report.units import factor
from stages.balance import ENGINE_METRICS, balancedness_per_layer, engine_metrics
from stages.gpu_balance import GpuBalance

Floats = npt.NDArray[np.float64]
SCALE = "GPU load / mean of its layer"


def heat_maps(balance: GpuBalance, gpus_per_node: int) -> Html:
    before, after = relative(balance.before), relative(balance.after)
    scale = around_mean(SCALE, float(max(before.max(), after.max())))

    def said(layer: int, gpu: int, value: float) -> str:
        return f"layer {layer}, GPU {gpu}: {factor(value)}"

    maps = (
        heat_map(tag("b", f"{when}: balancedness {balancedness_per_layer(loads).mean():.4f}"), values, scale, "GPU", "MoE layer", said,
                 mark="Fullest", groups=gpus_per_node)
        for when, loads, values in (("Before", balance.before, before), ("After", balance.after, after))
    )  # fmt: skip
    return tag("div", *maps, class_="pair")


def per_gpu(balance: GpuBalance, gpus_per_node: int) -> Html:
    """The layer that is least even after, GPU by GPU."""
    worst = balance.least_even
    before, after, bound = balance.of_layer(worst)
    shown = bars(
        join(
            f"MoE layer {worst}, the least even one after: ", named("before", "was"), ", ", named("after", "now"),
            ", and the ", named("bound", "limit"), " that the fullest GPU of no placement can beat",
        ),
        [Series(before, "was", "before"), Series(after, "now", "after")],
        [Level(bound, "limit", "bound")],
        "GPU",
        "load / mean",
        factor,
        spoken=f"Load of each GPU in MoE layer {worst}: fullest {factor(float(before.max()))} the mean before and "
        f"{factor(float(after.max()))} after; the bound is {factor(bound)}.",
        groups=gpus_per_node,
        note=f"Fullest GPU: {factor(float(before.max()))} the mean before (GPU {before.argmax()}), "
        f"{factor(float(after.max()))} after (GPU {after.argmax()}); {against(after.max(), bound)}.",
    )  # fmt: skip
    return tag("div", shown, per_layer(balance), class_="pair") if len(balance.after) > 1 else shown


def per_layer(balance: GpuBalance) -> Html:
    """The fullest GPU of every layer."""
    mean = np.where(balance.after.mean(axis=1) > 0, balance.after.mean(axis=1), 1.0)
    before, after, bound = balance.before.max(axis=1) / mean, balance.after.max(axis=1) / mean, balance.bound / mean
    return curves(
        join(
            "The fullest GPU of every layer: ", named("before", "was"), ", ", named("after", "now"), ", and the ",
            named("bound", "limit"),
        ),
        [Series(before, "was", "before"), Series(after, "now", "after"), Series(bound, "limit", "bound")],
        "MoE layer",
        "load / mean",
        factor,
        spoken=f"The fullest GPU of each layer, on average {factor(float(before.mean()))} the mean before and "
        f"{factor(float(after.mean()))} after.",
        note=f"On average {factor(float(before.mean()))} before and {factor(float(after.mean()))} after; "
        f"at most {gap(balance):.2%} above the bound in any layer.",
    )  # fmt: skip


def engines(balance: GpuBalance) -> Html:
    before, after = engine_metrics(balance.before), engine_metrics(balance.after)
    rows = []
    for key, words in ENGINE_METRICS.items():
        engine, _, formula = words.partition(": ")
        rows.append((engine, formula, f"{before[key]:.4f}", f"{after[key]:.4f}"))
    return table(("engine", "balance of GPU loads", "before", "after"), list(rows), numbers=(2, 3))


def relative(gpu: Floats) -> Floats:
    """[L, R]: load over the mean of its layer; 1 in a layer without load."""
    mean = gpu.mean(axis=1, keepdims=True)
    return np.where(mean > 0, gpu / np.where(mean > 0, mean, 1.0), 1.0)


def gap(balance: GpuBalance) -> float:
    """How far the fullest GPU is above the bound, of the worst layer."""
    safe = np.where(balance.bound > 0, balance.bound, 1.0)
    return float(np.where(balance.bound > 0, balance.after.max(axis=1) / safe - 1, 0.0).max(initial=0.0))


def against(value: float, bound: float) -> str:
    over = value / bound - 1 if bound > 0 else 0.0
    return f"the bound is {factor(bound)}" + (
        ", which is reached" if over < 5e-5 else f", and after is {over:.2%} above it"
    )
