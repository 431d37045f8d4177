"""A picture of where the time went."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stages.figures import BLUE, GREY, ORANGE
from stages.update.measured import TIMED, Measured
from stages.update.progress_board import Phase

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {
    Phase.fill: "#cbd5e0", Phase.checksum_before: "#90cdf4", Phase.link: GREY,
    Phase.update: ORANGE, Phase.checksum_after: BLUE,
}  # fmt: skip


def timeline(measured: Measured) -> Figure:
    """Left: the phases of each rank over time. Right: seconds of each layer, those of the slowest rank."""
    from matplotlib.figure import Figure

    ranks = len(measured.spans)
    figure = Figure(figsize=(11, 1.8 + 0.3 * min(ranks, 24)), layout="constrained")
    phases, layers = figure.subplots(1, 2)
    for index, phase in enumerate(TIMED):
        begin, end = measured.spans[:, index, 0], measured.spans[:, index, 1]
        phases.barh(np.arange(ranks), end - begin, left=begin, color=COLOURS[phase], label=phase.name.replace("_", " "))
    phases.set(title="Phases of each rank", xlabel="seconds", ylabel="rank")
    phases.invert_yaxis()
    phases.yaxis.get_major_locator().set_params(integer=True)
    figure.legend(loc="outside lower center", ncols=len(TIMED), frameon=False, fontsize="small")
    slowest = measured.layer_seconds.max(axis=0) * 1e3
    layers.bar(np.arange(len(slowest)), slowest, color=ORANGE)
    layers.set(title="Update of each layer, slowest rank", xlabel="layer", ylabel="milliseconds")
    for axes in (phases, layers):
        axes.spines[["top", "right"]].set_visible(False)
    return figure
