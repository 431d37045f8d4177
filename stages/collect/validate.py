"""From what a source says to loads that fit the model, or one message that names file, layer and rows.

The source is read once where nothing is wrong with it. Where something is, and is to be dropped or repaired, it is read
again with all that is wrong known.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from stages.collect.dump import Dump
from stages.collect.intake import Intake
from stages.collect.layers import current_map
from stages.collect.repair import pay
from stages.collect.windows import STEPS, Windows
from stages.collect.words import numbered
from stages.contract import Progress, silent
from stages.errors import BadInput
from stages.load import LoadStats
from stages.model import ModelSpec

ERROR, DROP, REPAIR = "error", "drop", "repair"


@dataclass(frozen=True)
class Wanted:
    """What is wanted of a source: rows with a `label`, merged `by` so many (`window`), and what to do `on_bad` ones."""

    on_bad: str = ERROR
    label: str | None = None
    window: int | None = None
    by: str = STEPS


@dataclass(frozen=True)
class Checked:
    """Loads that fit the model, and what was left out of the source to get them.

    layer_rows: [L] the source's name (its number there) of each MoE layer
    top_k:      experts per token, as the model or the source says
    dense_rows: layers of the source that are dense layers of the model
    empty_rows: rows of the source that were never filled
    defects:    what was wrong, in words; `bad_cells` counts of a layer in a row, `repeated_rows` rows
    """

    load: LoadStats
    origin: str
    layer_rows: tuple[int, ...]
    on_bad: str
    top_k: int | None = None
    dense_rows: tuple[int, ...] = ()
    empty_rows: tuple[int, ...] = ()
    defects: tuple[str, ...] = ()
    bad_cells: int = 0
    repeated_rows: int = 0
    notes: tuple[str, ...] = field(default=())


def check(dump: Dump, model: ModelSpec, wanted: Wanted | None = None, progress: Progress = silent) -> Checked:
    """The loads of `dump`, without the model's dense layers and without rows that were never filled."""
    wanted = wanted or Wanted()
    intake = Intake(dump, model, wanted.label)
    windows = Windows(wanted.by, wanted.window)
    current: npt.NDArray[np.generic] | None = None
    for block in dump.blocks():
        for selection in intake.judge(block):
            if not intake.findings.found:
                windows.add(selection.count, selection.labels, selection.tokens, block.file)
        current = block.current if block.current is not None else current
        progress("reading loads", block.done / 2)
    intake.conclude()
    if wanted.on_bad == ERROR:
        intake.findings.raise_first()
    bad = intake.findings.cells()
    repeats = intake.findings.repeated_rows()
    if intake.findings.listed():
        windows = _again(dump, intake, Windows(wanted.by, wanted.window), wanted.on_bad, progress)
    if windows.empty:
        raise BadInput(f"{dump.origin} has no rows left: {'; '.join(intake.findings.sentences())}.")
    count, labels, owed = windows.finish()
    layout = intake.layout
    assert layout is not None
    checked = Checked(
        load=LoadStats(pay(count, owed), labels, current_map(dump, current, layout)),
        origin=dump.origin,
        layer_rows=tuple(layout.names),
        on_bad=wanted.on_bad,
        top_k=intake.top_k,
        dense_rows=tuple(layout.dense),
        empty_rows=tuple(intake.empty_rows),
        defects=tuple(intake.findings.sentences()),
        bad_cells=len(bad),
        repeated_rows=len(repeats),
        notes=(*dump.notes, *_doubts(intake)),
    )
    _require_tokens(checked, intake)
    return checked


def _again(dump: Dump, intake: Intake, windows: Windows, on_bad: str, progress: Progress) -> Windows:
    """The second reading: what is bad is left out, or put right."""
    intake.restart()
    for block in dump.blocks():
        for selection in intake.select(block):
            part = intake.without_bad(selection, repair=on_bad == REPAIR)
            windows.add(part.count, part.labels, part.tokens, block.file, part.owed)
        progress("reading loads again", 0.5 + block.done / 2)
    return windows


def _doubts(intake: Intake) -> list[str]:
    """What is odd and may still be meant."""
    if not intake.odd_sums or intake.findings.found:
        return []
    return [
        f"Counts of a layer in a row that are no multiple of top_k={intake.top_k}: {intake.odd_sums:,}; are these sampled?"
    ]


def _require_tokens(checked: Checked, intake: Intake) -> None:
    """Raise `BadInput` unless every layer has tokens in some window."""
    silent_layers = np.flatnonzero(~checked.load.logical_count.any(axis=(0, 2)))
    if len(silent_layers):
        layers = [checked.layer_rows[layer] for layer in silent_layers]
        dropped = " after dropping what is bad (collect.on_bad=repair gives it some)" if checked.defects else ""
        if not dropped and intake.model.layers is None and layers == list(range(len(layers))):
            dropped = (
                f"; if they are dense layers, say so: model.layers={checked.load.layers - len(layers)} "
                f"model.first_moe_layer={len(layers)}"
            )
        raise BadInput(
            f"{checked.origin}: {numbered('layer', layers)} {'has' if len(layers) == 1 else 'have'} no tokens at all, "
            f"in none of {numbered('row', intake.kept_rows)} (windows, counted from 0){dropped}."
        )
