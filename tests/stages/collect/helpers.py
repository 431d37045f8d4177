"""A small model, loads that fit it, and files of every format that hold them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyarrow import csv, parquet
from safetensors.numpy import save_file

from stages.collect.config import CollectOptions, CollectStageConfig
from stages.collect.stage import collect
from stages.contract import StageResult, silent
from stages.load import LoadStats, read_load
from stages.model import ModelSpec, TensorSpec

Counts = npt.NDArray[np.int64]


def model(layers: int | None = 3, experts: int | None = 4, **other: object) -> ModelSpec:
    return ModelSpec(layers=layers, experts=experts, tensors=[TensorSpec("w", [8], "uint8")], **other)  # type: ignore[arg-type]


def loads(windows: int = 5, layers: int = 3, experts: int = 4) -> Counts:
    """[T, L, E] of different counts above 0."""
    return np.arange(1, windows * layers * experts + 1).reshape(windows, layers, experts)


def columns(count: Counts) -> dict[str, npt.NDArray[np.int64]]:
    window, layer, expert = (index.ravel() for index in np.indices(count.shape))
    return {"window": window, "layer": layer, "expert": expert, "count": count.ravel()}


def _json(path: Path, count: Counts) -> None:
    path.write_text(json.dumps({"logical_count": count.tolist()}))


def _bare_json(path: Path, count: Counts) -> None:
    path.write_text(json.dumps(count.tolist()))


def _adrs(path: Path, count: Counts) -> None:
    path.write_text(json.dumps({"load_history": [{"logical_expert_load": step} for step in count.tolist()]}))


WRITERS: dict[str, tuple[str, Callable[[Path, Counts], None]]] = {
    "npz": (".npz", lambda path, count: np.savez(path, logical_count=count)),
    "npy": (".npy", lambda path, count: np.save(path, count)),
    "npy_floats": (".npy", lambda path, count: np.save(path, count.astype(np.float64))),
    "safetensors": (".safetensors", lambda path, count: save_file({"logical_count": count}, path)),
    "csv": (".csv", lambda path, count: csv.write_csv(pa.table(columns(count)), path)),
    "parquet": (".parquet", lambda path, count: parquet.write_table(pa.table(columns(count)), path)),
    "json": (".json", _json),
    "json_list": (".json", _bare_json),
    "json_adrs": (".json", _adrs),
}


def run(folder: Path, spec: ModelSpec, seed: int = 0, **options: object) -> tuple[StageResult, LoadStats]:
    """The stage's result and the loads that it wrote."""
    config = CollectStageConfig(CollectOptions(**options), spec, seed)  # type: ignore[arg-type]
    result = collect(config, {}, folder / "collect", silent)
    return result, read_load(folder / "collect" / "load.safetensors")


def run_table(path: Path, spec: ModelSpec, **options: object) -> tuple[StageResult, LoadStats]:
    return run(path.parent, spec, source="table", path=str(path), **options)
