"""Readers of tables, CSV and Parquet: one row a window, layer and expert. Counts that have no row are 0."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from stages.collect.dump import Dump
from stages.collect.faults import as_integers, first_fault
from stages.collect.words import listed, many, numbered
from stages.errors import BadInput
from stages.model import ModelSpec

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = ("layer", "expert", "count")
WINDOW = "window"
HOW_COUNTED = "rows counted from 0, below the header"

Integers = npt.NDArray[np.int64]


def read_csv(path: Path, model: ModelSpec) -> Dump:
    from pyarrow import csv

    return _dump(path, csv.read_csv(path), model)


def read_parquet(path: Path, model: ModelSpec) -> Dump:
    from pyarrow import parquet

    return _dump(path, parquet.ParquetFile(path).read(), model)


def _dump(path: Path, table: pa.Table, model: ModelSpec) -> Dump:
    """The dense [T, L, E] of a table. Layers are numbered as MoE layers, or as the engine does (dense ones too)."""
    names = [name.strip() for name in table.column_names]
    table = table.rename_columns(names)
    for name in (*COLUMNS, WINDOW):
        if names.count(name) != 1 and (name != WINDOW or name in names):
            found = f"has no column {name}" if name not in names else f"has the column {name} more than once"
            raise BadInput(f"{path} {found}; its columns are {listed(names, 8)}.")
    if not table.num_rows:
        raise BadInput(f"{path} is empty: it has no rows.")
    layer = _integers(path, table, "layer")
    layers = _layers(path, layer, model)
    expert = _integers(path, table, "expert", layer)
    experts = _extent(path, "expert", expert, model.experts, layer)
    count = _integers(path, table, "count", layer)
    window, labels = _windows(path, table)
    windows = int(window.max()) + 1
    cell = (window * layers + layer) * experts + expert
    _refuse_repeats(path, cell, window, layer, expert)
    dense = np.zeros(windows * layers * experts, dtype=np.int64)
    dense[cell] = count
    return Dump(str(path), dense.reshape(windows, layers, experts), labels)


def _integers(path: Path, table: pa.Table, name: str, layer: Integers | None = None) -> Integers:
    """[N]: a column of whole numbers of at least 0. `layer`: that of each row, to be named in a message."""
    values = table[name].to_numpy()
    if values.dtype.kind == "O":
        values = _parsed(values)
    fault = first_fault(values)
    if fault is None:
        return as_integers(values)
    rows = np.flatnonzero(fault.where)
    inside = ""
    if layer is not None:
        rows = rows[layer[rows] == layer[rows[0]]]
        inside = f"layer {layer[rows[0]]} "
    value = table[name][int(rows[0])].as_py()
    raise BadInput(
        f"{path}: {inside}has values of {name} that are {fault.what} in {numbered('row', rows)} ({HOW_COUNTED}); "
        f"the first is {'empty' if value is None else repr(value)}."
    )


def _parsed(values: npt.NDArray[np.object_]) -> npt.NDArray[np.float64]:
    """Text as numbers: one bad cell makes text of a whole CSV column. What is no number becomes NaN."""

    def number(value: object) -> float:
        try:
            return float(value) if isinstance(value, str) else float("nan")
        except ValueError:
            return float("nan")

    return np.array([number(value) for value in values])


def _layers(path: Path, layer: Integers, model: ModelSpec) -> int:
    """How many layers the table is about: those of the whole model where its numbers go beyond the MoE layers."""
    if model.layers is None:
        return _extent(path, "layer", layer, None)
    hidden = model.hidden_layers(model.layers)
    layers = _extent(path, "layer", layer, hidden)
    return layers if layers <= model.layers else hidden


def _extent(path: Path, name: str, values: Integers, allowed: int | None, layer: Integers | None = None) -> int:
    """One more than the largest number. Where the model does not say what is allowed, no number may be left out."""
    top = int(values.max()) + 1
    if allowed is None:
        present = np.unique(values)
        if len(present) < top:
            gap = int(np.argmax(present != np.arange(len(present))))
            raise BadInput(
                f"{path}: {name} {gap} has no rows, though {name} {top - 1} has; "
                f"give it rows of count 0, or correct {numbered('row', np.flatnonzero(values == top - 1))} "
                f"({HOW_COUNTED})."
            )
    elif top > allowed:
        rows = np.flatnonzero(values >= allowed)
        inside = ""
        if layer is not None:
            rows = rows[layer[rows] == layer[rows[0]]]
            inside = f"layer {layer[rows[0]]}: "
        raise BadInput(
            f"{path}: {inside}{name} {values[rows[0]]} is out of range in {numbered('row', rows)} ({HOW_COUNTED}); "
            f"allowed are 0 to {allowed - 1}."
        )
    return top


def _windows(path: Path, table: pa.Table) -> tuple[Integers, tuple[str, ...]]:
    """[N]: the index of each row's window, and the windows' labels. Numbers are put in order and are no labels;
    anything else keeps the order in which it first appears."""
    if WINDOW not in table.column_names:
        return np.zeros(table.num_rows, dtype=np.int64), ()
    column = table[WINDOW].combine_chunks()
    empty = np.flatnonzero(column.is_null(nan_is_null=True).to_numpy(zero_copy_only=False))
    if len(empty):
        raise BadInput(f"{path} names no window in {numbered('row', empty)} ({HOW_COUNTED}).")
    values = column.to_numpy(zero_copy_only=False)
    if values.dtype.kind in "iuf":
        return np.unique(values, return_inverse=True)[1].astype(np.int64), ()
    found = column.dictionary_encode()
    labels = tuple(str(value) for value in found.dictionary.to_pylist())
    return found.indices.to_numpy().astype(np.int64), labels


def _refuse_repeats(path: Path, cell: Integers, window: Integers, layer: Integers, expert: Integers) -> None:
    """Raise `BadInput` where two rows are about the same window, layer and expert."""
    order = np.argsort(cell, kind="stable")
    again = order[1:][np.diff(cell[order]) == 0]
    if not len(again):
        return
    first = int(again.min())
    rows = np.flatnonzero(cell == cell[first])
    others = len(np.unique(cell[again])) - 1
    raise BadInput(
        f"{path}: layer {layer[first]}, expert {expert[first]}, window {window[first]} is given more than once, "
        f"in {numbered('row', rows)} ({HOW_COUNTED})"
        + (f"; so {'is' if others == 1 else 'are'} {many(others, 'other')}." if others else ".")
    )
