"""Reading a plain file of loads, by its ending."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from stages.collect import arrays, nested, rows
from stages.collect.dump import Dump
from stages.collect.guard import guarded
from stages.errors import BadInput
from stages.model import ModelSpec

READERS: dict[str, Callable[[Path, ModelSpec], Dump]] = {
    ".npz": lambda path, model: arrays.read_npz(path),
    ".npy": lambda path, model: arrays.read_npy(path),
    ".safetensors": lambda path, model: arrays.read_safetensors(path),
    ".json": lambda path, model: nested.read_json(path),
    ".csv": rows.read_rows,
    ".parquet": rows.read_rows,
}


def reader_of(path: Path) -> Callable[[Path, ModelSpec], Dump]:
    """The reader for the ending of `path`. Raises `BadInput` when there is none."""
    if path.suffix.lower() not in READERS:
        raise BadInput(f"collect.path={path} has no known ending; allowed are {', '.join(READERS)}.")
    return READERS[path.suffix.lower()]


def read_table(path: Path, model: ModelSpec) -> Dump:
    """What the file at `path` says. Raises `BadInput` when it is not there, or cannot be read as what it ends in."""
    reader = reader_of(path)
    if not path.exists():
        raise BadInput(f"collect.path={path} does not exist.")
    if not path.is_file():
        raise BadInput(f"collect.path={path} is not a file.")
    if not path.stat().st_size:
        raise BadInput(f"{path} is empty: it has no bytes.")
    return guarded(lambda: reader(path, model), path, f"a {path.suffix} file")
