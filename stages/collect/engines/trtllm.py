"""TensorRT-LLM: a folder with `meta_info.json` and one `rank<r>.safetensors` a rank, keys `"<iteration>_<layer>"`, each
[num_experts] and of that rank's tokens alone. Layers are numbered as the model's own."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from stages.collect.dump import Block, Dump, rows_at_once
from stages.collect.words import many, numbered
from stages.errors import BadInput

META = "meta_info.json"
RANK = re.compile(r"rank(\d+)\.safetensors")
KEY = re.compile(r"(\d+)_(\d+)")


def read_trtllm(path: Path, *, strict: bool = True) -> Dump:
    """Unless `strict`, iterations that some rank or layer lacks are left out and noted."""
    if not (path / META).is_file():
        raise BadInput(f"{path} has no {META}; TensorRT-LLM writes it beside rank0.safetensors.")
    meta = json.loads((path / META).read_text(encoding="utf-8"))
    experts, top_k = meta.get("num_experts"), meta.get("num_experts_per_token")
    if not isinstance(experts, int):
        raise BadInput(f"{path / META} does not say num_experts.")
    files = _files(path, strict)
    keys = {file: _keys(file) for file in files}
    layers = sorted({layer for found in keys.values() for _, layer in found})
    every = sorted({iteration for found in keys.values() for iteration, _ in found})
    whole = [it for it in every if all((it, layer) in found for found in keys.values() for layer in layers)]
    dump = Dump(str(path), lambda: _blocks(files, whole, layers, experts), layer_ids=tuple(layers), top_k=top_k)
    problems = _problems(keys, every, layers)
    if problems and strict:
        raise BadInput(f"{path}: {problems[0]}; collect.on_bad=drop reads what there is.")
    dump.notes.extend(f"Left out or incomplete: {problem}" for problem in problems)
    if not whole:
        raise BadInput(f"{path} has no iteration that all its ranks and layers recorded.")
    return dump


def _files(path: Path, strict: bool) -> list[Path]:
    found = {int(name[1]): file for file in path.iterdir() if (name := RANK.fullmatch(file.name))}
    if not found:
        raise BadInput(f"{path} has no rank0.safetensors.")
    absent = sorted(set(range(max(found) + 1)) - set(found))
    if absent and strict:
        raise BadInput(f"{path} lacks {numbered('rank', absent)}, though it has rank {max(found)}.")
    return [found[rank] for rank in sorted(found)]


def _keys(file: Path) -> set[tuple[int, int]]:
    """(iteration, layer) of every tensor."""
    from safetensors import safe_open

    found = set()
    with safe_open(file, framework="numpy") as opened:
        for key in opened.keys():  # noqa: SIM118
            name = KEY.fullmatch(key)
            if name is None:
                raise BadInput(f"{file} has a tensor {key}; keys are <iteration>_<layer>.")
            found.add((int(name[1]), int(name[2])))
    return found


def _problems(keys: dict[Path, set[tuple[int, int]]], every: list[int], layers: list[int]) -> list[str]:
    problems = []
    if every:
        gaps = sorted(set(range(every[0], every[-1] + 1)) - set(every))
        if gaps:
            problems.append(f"{numbered('iteration', gaps)} missing between {every[0]} and {every[-1]}")
    for file, found in keys.items():
        absent = sorted({(it, layer) for it in every for layer in layers} - found)
        if absent:
            it, layer = absent[0]
            problems.append(f"{file.name} has no iteration {it} of layer {layer} ({many(len(absent), 'such tensor')})")
    return problems


def _blocks(files: list[Path], iterations: list[int], layers: list[int], experts: int) -> Iterator[Block]:
    from safetensors import safe_open

    step = rows_at_once(len(layers) * experts * 8)
    for start in range(0, len(iterations), step):
        chosen = iterations[start : start + step]
        count = np.zeros((len(chosen), len(layers), experts), dtype=np.int64)
        for file in files:
            with safe_open(file, framework="numpy") as opened:  # anew, since it keeps what it read mapped
                for row, iteration in enumerate(chosen):
                    for column, layer in enumerate(layers):
                        count[row, column] += _tensor(file, opened, f"{iteration}_{layer}", experts)
        yield Block(count, done=(start + len(chosen)) / len(iterations))


def _tensor(file: Path, opened: Any, key: str, experts: int) -> Any:
    found = opened.get_tensor(key)
    if found.shape != (experts,) or found.dtype.kind not in "iu":
        raise BadInput(
            f"{file}: {key} is {found.dtype} of shape {list(found.shape)}; {experts} whole numbers are expected."
        )
    return found
