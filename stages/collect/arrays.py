"""Readers of files that hold arrays: npz, npy and safetensors. Nothing is ever unpickled, and files of any size are read
block by block."""

from __future__ import annotations

import json
import mmap
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stages.collect.dump import AnyArray, Block, Dump, check_rows, check_shape, of_array, rows_at_once
from stages.collect.words import listed
from stages.errors import BadInput

COUNT = "logical_count"
MAP = "physical_to_logical_map"
TOKENS = "tokens"
LABELS = ("label", "labels")
IN_MEMORY = 1 << 26
"""Arrays up to this many bytes are read whole."""


def read_npz(path: Path) -> Dump:
    """`logical_count`, and if they are there `physical_to_logical_map`, `tokens` and `label` (or `labels`)."""
    loaded = np.load(path, allow_pickle=False)
    if not isinstance(loaded, np.lib.npyio.NpzFile):
        raise BadInput(f"{path} is no .npz file but a single array; give it the ending .npy.")
    with loaded as file:
        needs_count(path, list(file.files))
        labels = next((file[name] for name in LABELS if name in file.files), None)
        current, tokens = (file[name] if name in file.files else None for name in (MAP, TOKENS))
        assert file.zip is not None
        if file.zip.getinfo(f"{COUNT}.npy").file_size <= IN_MEMORY:
            return of_array(str(path), file[COUNT], _texts(labels), current, tokens)
    return _streamed(path, _texts(labels), current, tokens)


def _streamed(path: Path, labels: tuple[str, ...], current: AnyArray | None, tokens: AnyArray | None) -> Dump:
    """`logical_count` of an archive, decompressed block by block."""
    origin = str(path)
    with zipfile.ZipFile(path) as archive, archive.open(f"{COUNT}.npy") as stream:
        shape, fortran, dtype = _header(stream)
    if dtype.hasobject:
        raise BadInput(f"{path} holds pickled Python objects, which are never loaded.")
    check_shape(origin, shape)
    if fortran or len(shape) == 2:  # whose rows do not lie one after the other
        with np.load(path, allow_pickle=False) as file:
            return of_array(origin, file[COUNT], labels, current, tokens)
    check_rows(origin, shape[0], labels, tokens)
    row_bytes = dtype.itemsize * shape[1] * shape[2]

    def blocks() -> Iterator[Block]:
        step = rows_at_once(row_bytes)
        with zipfile.ZipFile(path) as archive, archive.open(f"{COUNT}.npy") as stream:
            _header(stream)
            for start in range(0, shape[0], step):
                rows = min(step, shape[0] - start)
                count = np.frombuffer(_exactly(stream, rows * row_bytes), dtype).reshape(rows, *shape[1:])
                part = slice(start, start + rows)
                yield Block(
                    count, labels[part], None if tokens is None else tokens[part], current, done=part.stop / shape[0]
                )

    return Dump(origin, blocks)


def _header(stream: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(stream)


def _exactly(stream: Any, size: int) -> bytes:
    parts = []
    while size and (part := stream.read(size)):
        parts.append(part)
        size -= len(part)
    if size:
        raise EOFError(f"{size} bytes are missing")
    return b"".join(parts)


def read_npy(path: Path) -> Dump:
    """The array itself is `logical_count`."""
    if path.stat().st_size <= IN_MEMORY:
        count = np.load(path, allow_pickle=False)
        if not isinstance(count, np.ndarray):
            raise BadInput(f"{path} is no .npy file but an archive of arrays; give it the ending .npz.")
        return of_array(str(path), count)
    mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    whole = of_array(str(path), mapped)

    def blocks() -> Iterator[Block]:
        for block in whole.blocks():
            yield block
            pages = mapped.base  # read pages are dropped again: they would count as memory in use
            if isinstance(pages, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
                pages.madvise(mmap.MADV_DONTNEED)

    return Dump(whole.origin, blocks)


def read_safetensors(path: Path) -> Dump:
    """`logical_count`, `physical_to_logical_map` and `tokens` if they are there, and the labels that a
    `load.safetensors` has."""
    from safetensors import safe_open

    origin = str(path)
    with safe_open(path, framework="numpy") as file:
        names = set(file.keys())
        needs_count(path, sorted(names))
        labels = tuple(map(str, json.loads((file.metadata() or {}).get("moesaic", "{}")).get("labels", [])))
        current, tokens = (file.get_tensor(name) if name in names else None for name in (MAP, TOKENS))
        shape = tuple(file.get_slice(COUNT).get_shape())
        check_shape(origin, shape)
        row = file.get_slice(COUNT)[:1]
        if len(shape) == 2 or row.nbytes * shape[0] <= IN_MEMORY:
            return of_array(origin, file.get_tensor(COUNT), labels, current, tokens)
    check_rows(origin, shape[0], labels, tokens)

    def blocks() -> Iterator[Block]:
        step = rows_at_once(row.nbytes)
        for start in range(0, shape[0], step):
            with safe_open(path, framework="numpy") as file:  # opened anew, since it keeps what it read mapped
                part = slice(start, min(start + step, shape[0]))
                count = file.get_slice(COUNT)[part]
            yield Block(
                count, labels[part], None if tokens is None else tokens[part], current, done=part.stop / shape[0]
            )

    return Dump(origin, blocks)


def _texts(labels: npt.NDArray[np.generic] | None) -> tuple[str, ...]:
    return () if labels is None else tuple(map(str, labels.ravel().tolist()))


def needs_count(path: Path, names: list[str]) -> None:
    if COUNT not in names:
        raise BadInput(f"{path} has no {COUNT}, only {listed(names) or 'nothing at all'}.")
