"""What the stage tells about the loads: numbers, two figures, and a note."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from stages import figures
from stages.collect.validate import REPAIR, Checked
from stages.collect.windows import kinds
from stages.collect.words import listed, many, numbered
from stages.load import LoadStats

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 8


def tokens(load: LoadStats, top_k: int | None) -> float:
    """Tokens in all windows: the counts of a layer (the mean over layers, should they differ) / top_k.

    Where top_k is not known it counts as 1: then a token counts once for every expert that it went to.
    """
    return float(load.total().sum(axis=1).mean() / (top_k or 1))


def imbalance(load: LoadStats) -> npt.NDArray[np.float64]:
    """[L]: max / mean expert load, over all windows."""
    total = load.total()
    return total.max(axis=1) / total.mean(axis=1)


def metrics(load: LoadStats, top_k: int | None) -> dict[str, float]:
    """`windows`, `tokens`, and the `imbalance` of the most skewed layer."""
    return {"windows": load.windows, "tokens": tokens(load, top_k), "imbalance": float(imbalance(load).max())}


def draw(load: LoadStats) -> dict[str, Figure]:
    """`expert_load`: every expert against the mean of its layer; `skew`: the experts' shares, the busiest first."""
    total = load.total()
    relative = total / total.mean(axis=1, keepdims=True)
    shares = -np.sort(-relative, axis=1) / load.experts * 100
    worst = int(imbalance(load).argmax())
    series = {
        "even": np.full(load.experts, 100 / load.experts),
        "mean of layers": shares.mean(axis=0),
        f"most skewed layer ({worst})": shares[worst],
    }
    return {
        "expert_load": figures.heat_map(
            relative, "Load of each expert", "logical expert", "MoE layer", "load / mean of the layer"
        ),
        "skew": figures.lines(series, "Skew of the experts", "experts, the busiest first", "share of the layer (%)"),
    }


def note(load: LoadStats, source: str, top_k: int | None, checked: Checked | None, merged: str | None) -> str:
    """Markdown: where the loads come from, their shape, the most skewed layer, and what was left out."""
    skew = imbalance(load)
    worst = int(skew.argmax())
    expert = int(load.total()[worst].argmax())
    shape = f"{many(load.windows, 'window')}, {many(load.layers, 'MoE layer')}, {many(load.experts, 'expert')}"
    lines = [
        f"**Loads from {source}**",
        "",
        f"- {shape}, {tokens(load, top_k):,.0f} {'tokens' if top_k else 'routed tokens (model.top_k is not known)'}",
        f"- Most skewed: layer {worst}, whose expert {expert} gets {skew[worst]:.2f} times the mean",
        f"- Mean over layers of max / mean expert load: {skew.mean():.2f}",
    ]
    if load.labels:
        counts = [f"{name} ({number})" for name, number in kinds(load.labels).items()]
        lines.append(f"- Labels: {listed(counts, SHOWN)}")
    if merged:
        lines.append(f"- {merged}")
    if load.current is not None:
        lines.append(f"- The source also holds the current placement, of {load.current.shape[1]} slots a layer")
    return "\n".join([*lines, *(f"- {line}" for line in left_out(checked))]) + "\n"


def left_out(checked: Checked | None) -> list[str]:
    """What of the source is not in the loads, a sentence each."""
    if checked is None:
        return []
    lines = []
    if checked.dense_rows:
        lines.append(f"Dropped as dense layers of the model: {numbered('layer', checked.dense_rows)} of the source")
    if checked.empty_rows:
        lines.append(f"Dropped as never filled: {numbered('row', checked.empty_rows)} of the source, all zero")
    word = "Repaired" if checked.on_bad == REPAIR else "Dropped"
    lines += [f"{'Dropped' if 'repeat earlier rows' in defect else word}: {defect}" for defect in checked.defects]
    return [*lines, *checked.notes]
