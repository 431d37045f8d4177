"""vLLM, as proposed (read from 0.33): JSON lines of type `eplb_load_stats`, counts of slots with the map that was in
place, summed over ranks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from stages.collect.dump import AnyArray, Block, Dump, rows_at_once
from stages.collect.engines.physical import ToLogical, experts_of
from stages.collect.words import numbered
from stages.engine_formats.vllm import LOADS, records
from stages.errors import BadInput
from stages.expert_map import ExpertMap
from stages.model import ModelSpec


def read_vllm(path: Path, model: ModelSpec, *, strict: bool = True) -> Dump:
    """A file, or a folder of `.jsonl` files in order of their names. Unless `strict`, a step that is there twice counts
    once, and is noted."""
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    if not files:
        raise BadInput(f"{path} has no .jsonl file.")
    dump = Dump(str(path), lambda: _blocks(files, model, strict, dump.notes))
    return dump


def _blocks(files: list[Path], model: ModelSpec, strict: bool, notes: list[str]) -> Iterator[Block]:
    experts = model.experts
    for number, file in enumerate(files):
        size, read = max(1, file.stat().st_size), 0

        def done(of_file: float, before: int = number) -> float:
            return (before + min(1.0, of_file)) / len(files)

        waiting: list[AnyArray] = []
        to_logical: ToLogical | None = None
        seen: set[Any] = set()
        again: list[int] = []
        for line, record in records(file):
            if record["record_type"] != LOADS:
                continue
            load, current = (_array(file, line, record, key) for key in ("expert_load", "p2l_map"))
            if load.shape != current.shape:
                raise BadInput(
                    f"{file}: line {line} has expert_load of shape {list(load.shape)} and p2l_map of "
                    f"{list(current.shape)}; both are [layers, slots]."
                )
            if record.get("step") in seen and record.get("step") is not None:
                again.append(line)
                continue
            seen.add(record.get("step"))
            if to_logical is None or not np.array_equal(to_logical.map, current):
                if waiting and to_logical is not None:
                    yield _block(waiting, to_logical, number, done(read / size))
                    waiting = []
                whole = _whole(file, line, current)
                experts = experts_of(whole, experts)
                to_logical = ToLogical(whole, experts, f"{file}: line {line}: p2l_map")
            waiting.append(load)
            read += load.size * 2  # about as many characters
            if len(waiting) >= rows_at_once(load.nbytes):
                yield _block(waiting, to_logical, number, done(read / size))
                waiting = []
        if again and strict:
            raise BadInput(
                f"{file}: the steps of {numbered('line', again)} are there more than once; "
                "collect.on_bad=drop counts the first of them."
            )
        if (
            again
            and (note := f"Left out as steps that are there already: {numbered('line', again)} of {file.name}")
            not in notes
        ):
            notes.append(note)
        if waiting and to_logical is not None:
            yield _block(waiting, to_logical, number, done(1.0))


def _block(loads: list[AnyArray], to_logical: ToLogical, file: int, done: float) -> Block:
    return Block(to_logical(np.stack(loads)), current=to_logical.map, file=file, done=done)


def _array(file: Path, line: int, record: dict[str, Any], key: str) -> AnyArray:
    try:
        found = np.array(record[key])
    except KeyError:
        raise BadInput(f"{file}: line {line} has no {key}.") from None
    except ValueError:
        raise BadInput(f"{file}: line {line}: {key} is not rectangular.") from None
    if found.ndim != 2 or not found.size or found.dtype.kind not in "iuf":
        raise BadInput(
            f"{file}: line {line}: {key} is {found.dtype} of shape {list(found.shape)}; numbers [layers, slots] are needed."
        )
    return found


def _whole(file: Path, line: int, current: AnyArray) -> ExpertMap:
    if current.dtype.kind not in "iu":
        raise BadInput(f"{file}: line {line}: p2l_map holds numbers that are not whole.")
    return current.astype(np.int64)
