"""Choosing windows by their label, and merging several into one."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from fnmatch import fnmatchcase

import numpy as np

from stages.collect.validate import Checked
from stages.collect.words import listed
from stages.errors import BadInput
from stages.load import LoadStats

SHOWN = 8


def choose(checked: Checked, label: str | None) -> Checked:
    """The windows whose label contains `label`, or matches it where it has one of the wildcards `*`, `?` and `[`."""
    if label is None:
        return checked
    labels = checked.load.labels
    if not labels:
        raise BadInput(f"collect.label={label} chooses nothing: {checked.origin} does not name its windows.")
    wild = any(sign in label for sign in "*?[")
    keep = [n for n, name in enumerate(labels) if (fnmatchcase(name, label) if wild else label in name)]
    if not keep:
        available = listed(kinds(labels), SHOWN)
        raise BadInput(f"collect.label={label} matches no window of {checked.origin}; available are {available}.")
    load = replace(checked.load, logical_count=checked.load.logical_count[keep], labels=tuple(labels[n] for n in keep))
    return replace(checked, load=load, rows=checked.rows[keep])


def kinds(labels: tuple[str, ...]) -> Counter[str]:
    """How many windows there are of each first part of a label, the part before `|`; in order of appearance."""
    return Counter(label.split("|")[0] for label in labels)


def merge(load: LoadStats, window: int | None) -> LoadStats:
    """Every `window` consecutive windows added up into one; the last may be of fewer."""
    if window is None or window == 1:
        return load
    starts = np.arange(0, load.windows, window)
    count = np.add.reduceat(load.logical_count, starts, axis=0)
    parts = [load.labels[start : start + window] for start in starts] if load.labels else []
    labels = tuple(part[0] if len(set(part)) == 1 else f"{part[0]} … {part[-1]}" for part in parts)
    return replace(load, logical_count=count, labels=labels)
