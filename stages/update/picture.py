"""A picture of where the time went."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stages.figures import BLUE, GREY, ORANGE
from stages.update.measured import TIMED, Measured
from stages.update.moved import EVENTS, SPLIT
from stages.update.progress_board import Phase

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {
    Phase.fill: "#cbd5e0", Phase.checksum_before: "#90cdf4", Phase.link: GREY, Phase.compile: "#d6bcfa",
    Phase.update: ORANGE, Phase.checksum_after: BLUE,
}  # fmt: skip


PART_COLOURS = (ORANGE, BLUE, GREY, "#38a169", "#805ad5")


def timeline(measured: Measured) -> Figure:
    """Left: the phases of each rank over time. Right: seconds of each layer, or of what was done with each batch, those
    of the slowest rank."""
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
    unit, parts = ("layer", EVENTS[:1]) if measured.event_seconds("layer").size else ("batch", SPLIT)
    for what, colour in zip(parts, PART_COLOURS, strict=False):
        slowest = measured.event_seconds(what).max(axis=0, initial=0) * 1e3
        layers.plot(np.arange(len(slowest)), slowest, color=colour, label=what, marker=".")
    layers.set(title=f"Update of each {unit}, slowest rank", xlabel=unit, ylabel="milliseconds")
    layers.set_ylim(bottom=0)
    if len(parts) > 1:
        layers.legend(frameon=False, fontsize="small", ncols=len(parts))
    for axes in (phases, layers):
        axes.spines[["top", "right"]].set_visible(False)
    return figure
