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


def timeline(measured: Measured, predicted: float) -> Figure:
    """Left: the phases of each rank over time. Right: seconds of each layer, or of what was done with each batch, those
    of the slowest rank. Below: the seconds that were `predicted`, and those that were measured."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    ranks = len(measured.spans)
    upper, lower = 1.8 + 0.3 * min(ranks, 24), 1.1
    figure = Figure(figsize=(11, upper + lower), layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=[upper, lower])
    phases, layers = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[0, 1])
    for index, phase in enumerate(TIMED):
        begin, end = measured.spans[:, index, 0], measured.spans[:, index, 1]
        phases.barh(np.arange(ranks), end - begin, left=begin, color=COLOURS[phase], label=phase.name.replace("_", " "))
    phases.set(title="Phases of each rank", xlabel="seconds", ylabel="rank")
    phases.invert_yaxis()
    phases.yaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside upper left", ncols=len(TIMED), frameon=False, fontsize="small")
    unit, parts = ("layer", EVENTS[:1]) if measured.event_seconds("layer").size else ("batch", SPLIT)
    for what, colour in zip(parts, PART_COLOURS, strict=False):
        slowest = measured.event_seconds(what).max(axis=0, initial=0) * 1e3
        layers.plot(np.arange(len(slowest)), slowest, color=colour, label=what, marker=".")
    layers.set(title=f"Update of each {unit}, slowest rank", xlabel=unit, ylabel="milliseconds")
    layers.set_ylim(bottom=0)
    if len(parts) > 1:
        layers.legend(frameon=False, fontsize="small", ncols=len(parts))
    both = figure.add_subplot(grid[1, :])
    took = float(measured.seconds.max())
    found = both.barh(
        ["predicted for these batches", "measured"], np.array([predicted, took]) * 1e3, color=[GREY, ORANGE]
    )
    both.bar_label(found, fmt=" %.4g ms", fontsize="small")
    both.set(title="The update, predicted and measured", xlabel="milliseconds")
    both.invert_yaxis()
    for axes in (phases, layers, both):
        axes.spines[["top", "right"]].set_visible(False)
    return figure
