"""The chosen rows of a block as whole numbers, with what is no number marked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from stages.collect.dump import AnyArray
from stages.collect.faults import all_faults, as_integers

Counts = npt.NDArray[np.int64]
Cells = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Selection:
    """The chosen rows of a block, their MoE layers alone.

    count:    [T, L, E] with 0 for every count of a layer in a row that has a value which is no count
    bad:      [T, L] where that is
    raw:      [T, L, E] the values as they are in the source
    rows:     [T] their numbers in the source
    labels:   [T] their names, or nothing
    tokens:   [T] tokens in each row, as the source says or as its counts have it
    expected: [T] what a layer must add up to, or -1; `known`: whether the source says so
    owed:     [T, L] what a repair must still give to a layer, or nothing
    """

    count: Counts
    bad: Cells
    raw: AnyArray
    rows: Counts
    labels: tuple[str, ...]
    tokens: npt.NDArray[np.float64]
    expected: Counts
    known: bool
    owed: Counts | None = None

    def only(self, keep: Cells) -> Selection:
        """The rows where `keep` is true."""
        if keep.all():
            return self
        labels = tuple(name for name, kept in zip(self.labels, keep, strict=True) if kept) if self.labels else ()
        arrays = {
            name: getattr(self, name)[keep] for name in ("count", "bad", "raw", "rows", "tokens", "expected")
        }  # fmt: skip
        return replace(self, **arrays, labels=labels, owed=None if self.owed is None else self.owed[keep])


def as_counts(raw: AnyArray) -> tuple[Cells, Counts]:
    """`bad` and `count` of a `Selection`, of its `raw`."""
    faults = all_faults(raw)
    if not faults:
        return np.zeros(raw.shape[:2], dtype=bool), as_integers(raw)
    bad = np.logical_or.reduce([fault.where for fault in faults]).any(axis=2)
    if raw.dtype.kind not in "iufO":
        return bad, np.zeros(raw.shape, dtype=np.int64)
    return bad, as_integers(np.where(bad[:, :, None], 0, raw))


def example(raw: AnyArray, where: npt.NDArray[np.bool_]) -> Callable[[int, int], str]:
    """Says the first value of a layer in a row that `where` marks."""

    def of(row: int, layer: int) -> str:
        expert = int(np.flatnonzero(where[row, layer])[0])
        return f"{raw[row, layer, expert]!s} for expert {expert}"

    return of


def within(keys: Counts, known: Counts) -> Cells:
    """Whether each key is among the sorted `known` ones."""
    if not len(known):
        return np.zeros(keys.shape, dtype=bool)
    place = np.minimum(np.searchsorted(known, keys), len(known) - 1)
    return known[place] == keys


def middle(sums: Counts, good: Cells) -> Counts:
    """[T]: the middle one of a row's `good` sums, [T, L] both; 0 where it has none."""
    ordered = np.sort(np.where(good, sums, np.iinfo(np.int64).max), axis=1)
    voters = good.sum(axis=1)
    chosen = np.take_along_axis(ordered, np.maximum(voters - 1, 0)[:, None] // 2, axis=1)[:, 0]
    return np.where(voters > 0, chosen, 0)
