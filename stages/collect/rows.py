"""Reader of tables, CSV and Parquet: one row a window, layer and expert. Counts that have no row are 0.

A table is read twice, batch by batch: first for its extent and its faults, then for its counts. Where its windows follow
one another they are handed on as they are done, so that a table of any size needs the memory of a few windows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stages.collect.columns import HOW_COUNTED, Batch, Integers, batches
from stages.collect.dump import BLOCK_BYTES, Block, Dump
from stages.collect.words import many, numbered
from stages.errors import BadInput
from stages.model import ModelSpec


def read_rows(path: Path, model: ModelSpec) -> Dump:
    """Layers are numbered as MoE layers, or as the engine does (dense ones too)."""
    extent = _Extent(path, model)
    for batch in batches(path):
        extent.take(batch)
    return _Table(path, *extent.conclude()).dump()


@dataclass
class _Extent:
    """What the first pass learns: how many windows, layers and experts there are, and in which order."""

    path: Path
    model: ModelSpec
    rows: int = 0
    layers: set[int] = field(default_factory=set)
    experts: set[int] = field(default_factory=set)
    windows: dict[Any, int] = field(default_factory=dict)
    last: dict[str, tuple[int, list[int]]] = field(default_factory=dict)
    named: bool = False
    in_order: bool = True
    reached: int = 0

    def take(self, batch: Batch) -> None:
        self._within("layer", batch, self._layers_allowed())
        self._within("expert", batch, self.model.experts)
        self.layers.update(np.unique(batch.layer).tolist())
        self.experts.update(np.unique(batch.expert).tolist())
        found, first = np.unique(batch.window, return_index=True)
        self.named = self.named or batch.named
        for value in found[np.argsort(first, kind="stable")].tolist():
            self.windows.setdefault(value, len(self.windows))
        order = batch.index_of(self.windows)
        starts = np.concatenate([[self.reached], order])
        self.in_order = self.in_order and bool((np.diff(starts) >= 0).all())
        self.reached = int(starts.max())
        self.rows += len(batch.layer)

    def conclude(self) -> tuple[int, int, list[Any], bool, bool]:
        """Layers, experts, the windows in their order, whether they have names, and whether they follow one another."""
        if not self.rows:
            raise BadInput(f"{self.path} is empty: it has no rows.")
        layers = self._top("layer", self.layers, self._layers_allowed())
        if self.model.layers is not None and layers > self.model.layers:
            layers = self.model.hidden_layers(self.model.layers)
        experts = self._top("expert", self.experts, self.model.experts)
        windows = list(self.windows) if self.named else sorted(self.windows)
        return layers, experts, windows, self.named, self.in_order and windows == list(self.windows)

    def _layers_allowed(self) -> int | None:
        return None if self.model.layers is None else self.model.hidden_layers(self.model.layers)

    def _within(self, name: str, batch: Batch, allowed: int | None) -> None:
        """Remember where the largest number stands; raise `BadInput` where it is beyond what the model has."""
        values: Integers = getattr(batch, name)
        if allowed is None:
            top = int(values.max(initial=-1))
            known, rows = self.last.get(name, (-1, []))
            if top >= known:
                here = (batch.start + np.flatnonzero(values == top)).tolist()
                self.last[name] = (top, (rows if top == known else []) + here[:100])
            return
        beyond = np.flatnonzero(values >= allowed)
        if len(beyond):
            inside = ""
            if name != "layer":
                beyond = beyond[batch.layer[beyond] == batch.layer[beyond[0]]]
                inside = f"layer {batch.layer[beyond[0]]}: "
            raise BadInput(
                f"{self.path}: {inside}{name} {values[beyond[0]]} is out of range in "
                f"{numbered('row', batch.start + beyond)} ({HOW_COUNTED}); allowed are 0 to {allowed - 1}."
            )

    def _top(self, name: str, present: Iterable[int], allowed: int | None) -> int:
        """One more than the largest number. Where the model does not say what is allowed, none may be left out."""
        numbers = sorted(present)
        top = numbers[-1] + 1
        if allowed is None and len(numbers) < top:
            gap = next(n for n, number in enumerate(numbers) if n != number)
            raise BadInput(
                f"{self.path}: {name} {gap} has no rows, though {name} {top - 1} has; give it rows of count 0, or "
                f"correct {numbered('row', self.last[name][1])} ({HOW_COUNTED})."
            )
        return top


@dataclass(frozen=True)
class _Table:
    """The second pass."""

    path: Path
    layers: int
    experts: int
    windows: list[Any]
    named: bool
    in_order: bool

    def dump(self) -> Dump:
        return Dump(str(self.path), self._blocks)

    def _blocks(self) -> Iterator[Block]:
        """The windows that are done, whenever there are enough of them; all at the end where they are not in order."""
        index = {value: n for n, value in enumerate(self.windows)}
        step = max(1, BLOCK_BYTES // (8 * self.layers * self.experts)) if self.in_order else len(self.windows)
        start = 0
        count, seen = self._empty(min(step, len(self.windows)))
        for batch in batches(self.path):
            window = batch.index_of(index)
            while self.in_order and window[-1] >= start + len(count):
                later = window >= start + len(count)
                self._fill(count, seen, start, window[~later], batch.only(~later))
                yield self._block(count, start)
                start += len(count)
                count, seen = self._empty(min(step, len(self.windows) - start))
                batch, window = batch.only(later), window[later]
            self._fill(count, seen, start, window, batch)
        yield self._block(count, start)

    def _empty(self, windows: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        shape = (windows, self.layers, self.experts)
        return np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=bool)

    def _block(self, count: npt.NDArray[np.int64], start: int) -> Block:
        names = self.windows[start : start + len(count)]
        labels = tuple(map(str, names)) if self.named else ()
        return Block(count, labels, done=(start + len(count)) / len(self.windows))

    def _fill(
        self,
        count: npt.NDArray[np.int64],
        seen: npt.NDArray[np.bool_],
        start: int,
        window: Integers,
        batch: Batch,
    ) -> None:
        cell = np.ravel_multi_index((window - start, batch.layer, batch.expert), count.shape)
        again = seen.ravel()[cell]
        order = np.argsort(cell, kind="stable")
        again[order[1:]] |= np.diff(cell[order]) == 0
        if again.any():
            self._refuse(window[again], batch.layer[again], batch.expert[again])
        count.ravel()[cell] = batch.count
        seen.ravel()[cell] = True

    def _refuse(self, window: Integers, layer: Integers, expert: Integers) -> None:
        """Raise `BadInput`: the first of these cells was given before; say in which rows, and how many others were."""
        first = (int(window[0]), int(layer[0]), int(expert[0]))
        index = {value: n for n, value in enumerate(self.windows)}
        rows: list[int] = []
        for batch in batches(self.path):
            same = (batch.index_of(index) == first[0]) & (batch.layer == first[1]) & (batch.expert == first[2])
            rows += (batch.start + np.flatnonzero(same)).tolist()
        others = len({*zip(window.tolist(), layer.tolist(), expert.tolist(), strict=True)}) - 1
        raise BadInput(
            f"{self.path}: layer {first[1]}, expert {first[2]}, window {first[0]} is given more than once, "
            f"in {numbered('row', rows)} ({HOW_COUNTED})"
            + (f"; so {'is' if others == 1 else 'are'} {many(others, 'other')}." if others else ".")
        )
