"""The columns of a table, CSV or Parquet, batch by batch: whole numbers, checked, and the window of each row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from stages.collect.faults import as_integers, first_fault
from stages.collect.words import listed, numbered
from stages.errors import BadInput

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = ("layer", "expert", "count")
WINDOW = "window"
HOW_COUNTED = "rows counted from 0, below the header"
CSV_BYTES, PARQUET_ROWS = 1 << 21, 1 << 17
"""How much of a file makes a batch."""

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """Consecutive rows of a table, [N] each. `window`: a number or, if `named`, a text. `start`: number of the first."""

    start: int
    layer: Integers
    expert: Integers
    count: Integers
    window: npt.NDArray[Any]
    named: bool

    def index_of(self, windows: dict[Any, int]) -> Integers:
        """[N]: the place of each row's window in `windows`."""
        found, inverse = np.unique(self.window, return_inverse=True)
        return np.array([windows[value] for value in found.tolist()], dtype=np.int64)[inverse]

    def only(self, keep: npt.NDArray[np.bool_]) -> Batch:
        columns = {name: getattr(self, name)[keep] for name in (*COLUMNS, WINDOW)}
        return replace(self, **columns)


def batches(path: Path) -> Iterator[Batch]:
    start = 0
    named: bool | None = None
    for table in _tables(path):
        if not table.num_rows:
            continue
        window, texts = _window(path, table, start, named)
        named = texts
        layer = _integers(path, table, "layer", start)
        expert = _integers(path, table, "expert", start, layer)
        count = _integers(path, table, "count", start, layer)
        yield Batch(start, layer, expert, count, window, texts)
        start += table.num_rows


def _tables(path: Path) -> Iterator[pa.Table]:
    import pyarrow as pa

    if path.suffix.lower() == ".csv":
        from pyarrow import csv

        # All as texts: guessing types from the first part of a file would fail on the rest, or not name the row.
        names = _checked(path, csv.open_csv(path, csv.ReadOptions(block_size=1 << 20)).schema.names)
        raw = dict.fromkeys((name for name in names if name.strip() in (*COLUMNS, WINDOW)), pa.string())
        convert = csv.ConvertOptions(column_types=raw, include_columns=list(raw), strings_can_be_null=True)
        reader = csv.open_csv(path, csv.ReadOptions(block_size=CSV_BYTES), convert_options=convert)
        for batch in reader:
            yield pa.Table.from_batches([batch]).rename_columns([name.strip() for name in batch.schema.names])
        return
    from pyarrow import parquet

    file = parquet.ParquetFile(path)
    names = _checked(path, file.schema_arrow.names)
    wanted = [name for name in names if name.strip() in (*COLUMNS, WINDOW)]
    for batch in file.iter_batches(PARQUET_ROWS, columns=wanted):
        yield pa.Table.from_batches([batch]).rename_columns([name.strip() for name in batch.schema.names])


def _checked(path: Path, columns: list[str]) -> list[str]:
    names = [name.strip() for name in columns]
    for name in (*COLUMNS, WINDOW):
        if names.count(name) != 1 and (name != WINDOW or name in names):
            found = f"has no column {name}" if name not in names else f"has the column {name} more than once"
            raise BadInput(f"{path} {found}; its columns are {listed(names, 8)}.")
    return columns


def _integers(path: Path, table: pa.Table, name: str, start: int, layer: Integers | None = None) -> Integers:
    """[N]: a column of whole numbers of at least 0. `layer`: that of each row, to be named in a message."""
    values = _numbers(table[name])
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
        f"{path}: {inside}has values of {name} that are {fault.what} in {numbered('row', start + rows)} "
        f"({HOW_COUNTED}); the first is {'empty' if value is None else _shown(value)}."
    )


def _shown(value: object) -> str:
    """A value as the file has it: a number without quotes."""
    if isinstance(value, str):
        try:
            float(value)
        except ValueError:
            return repr(value)
        return value.strip()
    return repr(value)


def _numbers(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    """Texts as numbers, where they are: what is no number becomes NaN."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not pa.types.is_string(column.type):
        values = column.to_numpy()
        return _parsed(values) if values.dtype.kind == "O" else values
    for kind in (pa.int64(), pa.float64()):
        try:
            return pc.cast(pc.utf8_trim_whitespace(column), kind).to_numpy()
        except pa.ArrowInvalid:
            continue
    return _parsed(column.to_numpy())


def _parsed(values: npt.NDArray[np.object_]) -> npt.NDArray[np.float64]:
    def number(value: object) -> float:
        try:
            return float(value) if isinstance(value, str) else float("nan")
        except ValueError:
            return float("nan")

    return np.array([number(value) for value in values])


def _window(path: Path, table: pa.Table, start: int, named: bool | None) -> tuple[npt.NDArray[Any], bool]:
    """[N] the window of each row, and whether it is a text. `named`: what it was in the batches before."""
    import pyarrow as pa

    if WINDOW not in table.column_names:
        return np.zeros(table.num_rows, dtype=np.int64), False
    column = table[WINDOW].combine_chunks()
    empty = np.flatnonzero(column.is_null(nan_is_null=True).to_numpy(zero_copy_only=False))
    if len(empty):
        raise BadInput(f"{path} names no window in {numbered('row', start + empty)} ({HOW_COUNTED}).")
    if not named:
        values = _numbers(table[WINDOW]) if pa.types.is_string(column.type) else column.to_numpy(zero_copy_only=False)
        if values.dtype.kind in "iuf" and not (values.dtype.kind == "f" and np.isnan(values).any()):
            return values, False
        if named is False:
            raise BadInput(
                f"{path} numbers its windows and names one {_shown(column[int(np.argmax(_odd(values)))].as_py())}."
            )
    return np.array([str(value) for value in column.to_pylist()], dtype=object), True


def _odd(values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    return np.isnan(values) if values.dtype.kind == "f" else np.ones(len(values), dtype=bool)
