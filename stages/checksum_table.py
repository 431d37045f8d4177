"""The checksums artifact: what every slot held before and after the update, tensor by tensor."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from stages import paths
from stages.expert_map import EMPTY, ExpertMap

PREVIEW_ROWS = 5_000


@dataclass(frozen=True)
class ChecksumTable:
    """`before` and `after`: uint64 `[L, P, K]` for K tensors; `old` and `new`: the `[L, P]` maps they belong to.

    Entries of slots that are empty in `old` (for `before`) or `new` (for `after`) mean nothing and are written null.
    """

    before: npt.NDArray[np.uint64]
    after: npt.NDArray[np.uint64]
    old: ExpertMap
    new: ExpertMap
    tensors: tuple[str, ...]
    ranks: int


def write_checksums(folder: Path, table: ChecksumTable) -> tuple[str, ...]:
    """Write the Parquet artifact (one row a slot and tensor) and a CSV preview; the names of both."""
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    layers, slots, tensors = table.before.shape
    layer, slot, tensor = (index.ravel() for index in np.indices((layers, slots, tensors)))
    old, new = (np.repeat(m.ravel(), tensors) for m in (table.old, table.new))
    columns = {
        "layer": layer,
        "slot": slot,
        "rank": slot // (slots // table.ranks),
        "tensor": pa.DictionaryArray.from_arrays(pa.array(tensor.astype(np.int32)), pa.array(table.tensors)),
        "expert_before": old,
        "expert_after": new,
        "before": pa.array(table.before.ravel(), mask=old == EMPTY),
        "after": pa.array(table.after.ravel(), mask=new == EMPTY),
    }
    arrow = pa.table(columns)
    with paths.atomic(folder / paths.CHECKSUMS) as temporary:
        pyarrow.parquet.write_table(arrow, temporary)
    with paths.atomic(folder / paths.CHECKSUMS_PREVIEW) as temporary:
        pyarrow.csv.write_csv(arrow.slice(0, PREVIEW_ROWS), temporary)
    return paths.CHECKSUMS, paths.CHECKSUMS_PREVIEW


def read_checksums(path: Path) -> ChecksumTable:
    import pyarrow.compute as pc
    import pyarrow.parquet

    arrow = pyarrow.parquet.read_table(path)
    layers = int(pc.max(arrow["layer"]).as_py()) + 1
    slots = int(pc.max(arrow["slot"]).as_py()) + 1
    ranks = int(pc.max(arrow["rank"]).as_py()) + 1
    names = arrow["tensor"].combine_chunks().dictionary_encode().dictionary.to_pylist()
    shape = (layers, slots, len(names))
    before, after = (arrow[c].fill_null(0).to_numpy().astype(np.uint64).reshape(shape) for c in ("before", "after"))
    old, new = (
        np.ascontiguousarray(arrow[c].to_numpy().reshape(shape)[:, :, 0]) for c in ("expert_before", "expert_after")
    )
    return ChecksumTable(before, after, old, new, tuple(names), ranks)
