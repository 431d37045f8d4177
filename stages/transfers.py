"""The transfer plan: one row a hop, as columns."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import IntEnum
from pathlib import Path

import numpy as np
import numpy.typing as npt

from stages import paths

Ints = npt.NDArray[np.int64]
PREVIEW_ROWS = 5_000


class Kind(IntEnum):
    """How an expert reaches its slot. `same_gpu` and `free_rider` need no network."""

    same_gpu = 0
    free_rider = 1
    same_node = 2
    cross_node = 3
    relay = 4


@dataclass(frozen=True)
class TransferPlan:
    """Columns of equal length N, one row a hop, in order of execution.

    `kind` holds `Kind` values; slots count over all P of the layer and are -1 where a hop leaves from or lands in
    staging alone; `bytes` are those of all tensors of the expert; hops of one layer with equal `round` go together.
    """

    layer: Ints
    logical_expert: Ints
    kind: Ints
    src_rank: Ints
    src_slot: Ints
    dst_rank: Ints
    dst_slot: Ints
    round: Ints
    bytes: Ints

    def __len__(self) -> int:
        return len(self.layer)

    def select(self, rows: npt.NDArray[np.bool_] | Ints) -> TransferPlan:
        """The plan of some rows alone: a mask or indices."""
        return TransferPlan(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    @property
    def network(self) -> npt.NDArray[np.bool_]:
        """[N]: which hops leave a GPU."""
        return self.kind >= Kind.same_node


COLUMNS = tuple(field.name for field in fields(TransferPlan))


def write_transfers(folder: Path, plan: TransferPlan) -> tuple[str, ...]:
    """Write the Parquet artifact and a CSV preview of its first rows into `folder`; the names of both."""
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    columns: dict[str, object] = {name: pa.array(getattr(plan, name)) for name in COLUMNS}
    names = pa.array([kind.name for kind in Kind])
    columns["kind"] = pa.DictionaryArray.from_arrays(pa.array(plan.kind.astype(np.int8)), names)
    table = pa.table(columns)
    with paths.atomic(folder / paths.TRANSFERS) as temporary:
        pyarrow.parquet.write_table(table, temporary)
    with paths.atomic(folder / paths.TRANSFERS_PREVIEW) as temporary:
        pyarrow.csv.write_csv(table.slice(0, PREVIEW_ROWS), temporary)
    return paths.TRANSFERS, paths.TRANSFERS_PREVIEW


def read_transfers(path: Path) -> TransferPlan:
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(path)
    columns = {name: table[name].to_numpy() for name in COLUMNS if name != "kind"}
    code = {kind.name: kind.value for kind in Kind}
    column = table["kind"].combine_chunks().dictionary_encode()
    kinds = np.array([code[name] for name in column.dictionary.to_pylist()], dtype=np.int64)
    indices = column.indices.to_numpy(zero_copy_only=False)
    columns["kind"] = kinds[indices] if len(indices) else np.zeros(0, dtype=np.int64)
    return TransferPlan(**{name: columns[name].astype(np.int64) for name in COLUMNS})
