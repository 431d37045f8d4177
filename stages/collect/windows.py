"""From the rows of a source to windows: as they are, or several added up, by number, by tokens or by file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatchcase

import numpy as np
import numpy.typing as npt

from stages.errors import BadInput
from stages.load import LoadStats

SHOWN = 8
STEPS, TOKENS, FILES = "steps", "tokens", "files"
MOST_BYTES = 1 << 32
"""More windows than this many bytes are not held: fewer and larger ones must be asked for."""

Counts = npt.NDArray[np.int64]


def matcher(label: str) -> Callable[[str], bool]:
    """Whether a label contains `label`, or matches it where it has one of the wildcards `*`, `?` and `[`."""
    wild = any(sign in label for sign in "*?[")
    return lambda name: fnmatchcase(name, label) if wild else label in name


def kinds(labels: tuple[str, ...]) -> Counter[str]:
    """How many windows there are of each first part of a label, the part before `|`; in order of appearance."""
    return Counter(label.split("|")[0] for label in labels)


class Windows:
    """Adds up rows as they come. Rows are [T, L, E]; what a later repair owes to a layer is [T, L]."""

    def __init__(self, by: str = STEPS, size: int | None = None) -> None:
        self.by, self.size = by, size or 1
        self._done: list[Counts] = []
        self._owed: list[Counts] = []
        self._labels: list[tuple[str, str, bool]] = []
        self._key: int | None = None
        self._seen = 0
        self._bytes = 0

    @property
    def empty(self) -> bool:
        return not self._done

    def add(
        self,
        count: Counts,
        labels: tuple[str, ...] = (),
        tokens: npt.NDArray[np.float64] | None = None,
        file: int = 0,
        owed: Counts | None = None,
    ) -> None:
        """`tokens`: [T], needed where windows are made of tokens. A row's window is that of its first token."""
        if not len(count):
            return
        keys = self._keys(len(count), tokens, file)
        starts = np.flatnonzero(np.diff(keys, prepend=keys[0] - 1))
        sums = count.copy() if len(starts) == len(count) else np.add.reduceat(count, starts, axis=0)
        debts = np.zeros(count.shape[:2], dtype=np.int64) if owed is None else owed
        debts = np.add.reduceat(debts, starts, axis=0)
        names = [_name(labels[a:b]) for a, b in zip(starts, [*starts[1:], len(count)], strict=True)] if labels else []
        if keys[0] == self._key:
            self._done[-1][-1] += sums[0]
            self._owed[-1][-1] += debts[0]
            if names:
                first, last, same = self._labels[-1]
                self._labels[-1] = (first, names[0][1], same and names[0][2] and last == names[0][0])
            sums, debts, names = sums[1:], debts[1:], names[1:]
        self._key = int(keys[-1])
        if len(sums):
            self._bytes += sums.nbytes
            if self._bytes > MOST_BYTES:
                raise BadInput(
                    f"These are more than {MOST_BYTES >> 30} GiB of windows: add up several into one with "
                    f"collect.window (now {self.size}, by {self.by})."
                )
            self._done.append(sums)
            self._owed.append(debts)
            self._labels += names

    def _keys(self, rows: int, tokens: npt.NDArray[np.float64] | None, file: int) -> npt.NDArray[np.int64]:
        if self.by == FILES:
            return np.full(rows, file // self.size, dtype=np.int64)
        if self.by == STEPS:
            before = self._seen + np.arange(rows)
            self._seen += rows
            return before // self.size
        assert tokens is not None
        whole = np.rint(tokens).astype(np.int64)
        before = self._seen + np.cumsum(whole) - whole
        self._seen += int(whole.sum())
        return before // self.size

    def finish(self) -> tuple[Counts, tuple[str, ...], Counts]:
        """[T, L, E] the windows, [T] their labels, and [T, L] what is owed."""
        labels = tuple(first if same else f"{first} … {last}" for first, last, same in self._labels)
        if len(self._done) == 1:
            return self._done[0], labels, self._owed[0]
        return np.concatenate(self._done), labels, np.concatenate(self._owed)


def merged(load: LoadStats, by: str, size: int | None, top_k: int | None) -> LoadStats:
    """Loads whose windows are rows, added up."""
    windows = Windows(by, size)
    tokens = load.logical_count.sum(axis=2).mean(axis=1) / (top_k or 1)
    windows.add(load.logical_count, load.labels, tokens)
    count, labels, _ = windows.finish()
    return replace(load, logical_count=count, labels=labels)


def _name(labels: tuple[str, ...]) -> tuple[str, str, bool]:
    """The first and the last label of a window, and whether all are the same."""
    return labels[0], labels[-1], len(set(labels)) == 1
