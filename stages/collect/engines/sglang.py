"""SGLang's recorder (0.5): `expert_distribution_recorder_<time>.pt` of the modes `stat` and `stat_approx`, already summed
over ranks, and `…_<time>_<rank>.pt` of `per_pass` and `per_token`, which count slots and only the tokens of their rank."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stages.collect.dump import AnyArray, Block, Dump, check_shape, rows_at_once
from stages.collect.engines import sglang_passes
from stages.collect.engines.pages import MappedPages
from stages.collect.words import listed
from stages.errors import BadInput
from stages.model import ModelSpec
from stages.untrusted import load_tensors

if TYPE_CHECKING:
    import torch

COUNT, RECORDS, MAP = "logical_count", "records", "physical_to_logical_map"
NAME = re.compile(r"expert_distribution_recorder_(?P<time>[0-9.]+?)(?:_(?P<rank>\d+))?\.pt")


def read_sglang(path: Path, model: ModelSpec, *, strict: bool = True) -> Dump:
    """One file, or a folder of them. Unless `strict`, what is missing of a pass or a rank is left out and noted."""
    files = files_of(path)
    values = {file: _checked(file, load_tensors(file)) for file in files}
    passes = [file for file in files if RECORDS in values[file]]
    if not passes:
        return _stat(path, values)
    if len(passes) < len(files):
        other = next(file for file in files if file not in passes)
        raise BadInput(f"{path} mixes dumps of several modes: {passes[0].name} holds passes, {other.name} sums.")
    return sglang_passes.read(path, {file: values[file] for file in passes}, model, strict=strict)


def files_of(path: Path) -> list[Path]:
    """The `.pt` files of a folder in order of their time, or the file itself."""
    if not path.is_dir():
        return [path]
    files = [file for file in path.iterdir() if file.suffix.lower() == ".pt" and file.is_file()]
    if not files:
        raise BadInput(f"{path} has no .pt file; SGLang writes expert_distribution_recorder_<time>.pt.")
    return sorted(files, key=_when)


def _when(file: Path) -> tuple[float, int, str]:
    found = NAME.fullmatch(file.name)
    try:
        return (float(found["time"]), int(found["rank"] or 0), file.name) if found else (0.0, 0, file.name)
    except ValueError:
        return (0.0, 0, file.name)


def _checked(file: Path, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadInput(f"{file} holds a {type(value).__name__}, and no dump of SGLang's recorder.")
    if COUNT in value or RECORDS in value:
        return value
    if MAP in value:
        raise BadInput(f"{file} holds a placement and no loads: give it as collect.current or place.current.")
    raise BadInput(f"{file} has neither {COUNT} nor {RECORDS}, only {listed(map(str, value)) or 'nothing at all'}.")


def _stat(path: Path, values: dict[Path, dict[str, Any]]) -> Dump:
    ranks = {file: value.get("rank") or 0 for file, value in values.items()}
    kept = [file for file in values if ranks[file] == min(ranks.values())]
    dump = Dump(str(path), lambda: _steps(kept, values))
    for file in kept:
        found = values[file][COUNT]
        if not hasattr(found, "numpy"):
            raise BadInput(f"{file}: {COUNT} is a {type(found).__name__}; a tensor is expected.")
        check_shape(str(file), tuple(found.shape))
    others = sorted({rank for file, rank in ranks.items() if file not in kept})
    if others:
        dump.notes.append(
            f"Left out as the same counts again: files of rank {listed(others)}, since these are summed over ranks"
        )
    return dump


def _steps(files: list[Path], values: dict[Path, dict[str, Any]]) -> Iterator[Block]:
    total = sum(values[file][COUNT].nbytes for file in files)
    read = 0
    for number, file in enumerate(files):
        count = values[file][COUNT]
        whole = count if count.dim() == 3 else count[None]
        current, pages = values[file].get(MAP), MappedPages.of(file)
        step = rows_at_once(whole[0].nbytes)
        for start in range(0, len(whole), step):
            part = whole[start : start + step]
            read += part.nbytes
            yield Block(as_numpy(part).copy(), current=_map(current), file=number, done=read / total)
            pages.forget(part)


def _map(current: torch.Tensor | None) -> AnyArray | None:
    return None if current is None else as_numpy(current)


def as_numpy(tensor: torch.Tensor) -> AnyArray:
    """Bfloat16, which NumPy does not have, as float32."""
    import torch

    return np.asarray((tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy())
