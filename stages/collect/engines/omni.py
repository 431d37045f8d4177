"""omni-infer: a folder of `activation_counts_recordstep_<step>_rank_<rank>.txt`, one line a MoE layer with the counts of
that rank's slots, separated by tabs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from stages.collect.dump import AnyArray, Block, Dump, rows_at_once
from stages.collect.engines.physical import ToLogical
from stages.collect.words import numbered
from stages.errors import BadInput
from stages.expert_map import ExpertMap, contiguous_map
from stages.model import ModelSpec

NAME = re.compile(r"activation_counts_recordstep_(\d+)_rank_(\d+)\.txt")


def read_omni(path: Path, model: ModelSpec, current: ExpertMap | None, *, strict: bool = True) -> Dump:
    """`current`: [L, P] which expert each slot held; without it the slots must be the experts in their order. Unless
    `strict`, steps that some rank lacks are left out and noted."""
    if not path.is_dir():
        raise BadInput(
            f"{path} is no folder of activation_counts_recordstep_<step>_rank_<rank>.txt; "
            "a placement of omni-infer (.npy) is given as collect.current."
        )
    files = {(int(m[1]), int(m[2])): file for file in path.iterdir() if (m := NAME.fullmatch(file.name))}
    if not files:
        raise BadInput(f"{path} has no activation_counts_recordstep_<step>_rank_<rank>.txt.")
    steps, ranks = sorted({step for step, _ in files}), range(max(rank for _, rank in files) + 1)
    whole = [step for step in steps if all((step, rank) in files for rank in ranks)]
    gone = [step for step in steps if step not in whole]
    dump = Dump(str(path), lambda: _blocks(files, whole, ranks, to_logical))
    if gone and strict:
        rank = next(rank for rank in ranks if (gone[0], rank) not in files)
        raise BadInput(
            f"{path}: rank {rank} has no file of step {gone[0]} ({numbered('step', gone)} incomplete); "
            "collect.on_bad=drop reads what there is."
        )
    if gone:
        dump.notes.append(f"Left out as incomplete: {numbered('step', gone)}")
    if not whole:
        raise BadInput(f"{path} has no step that all its ranks recorded.")
    layers, slots = _step(files, whole[0], ranks).shape
    if current is None:
        if model.experts is not None and slots != model.experts:
            raise BadInput(
                f"{path} counts {slots} slots a layer of {model.experts} experts: say with collect.current which "
                "expert each slot held."
            )
        current = contiguous_map(layers, slots, slots)
    elif current.shape != (layers, slots):
        raise BadInput(
            f"{path} counts {[layers, slots]} layers and slots, but collect.current is of {list(current.shape)}."
        )
    to_logical = ToLogical(current, model.experts or int(current.max()) + 1, "collect.current")
    return dump


def _blocks(
    files: dict[tuple[int, int], Path], steps: list[int], ranks: range, to_logical: ToLogical
) -> Iterator[Block]:
    step = rows_at_once(to_logical.map.size * 8)
    for start in range(0, len(steps), step):
        physical = np.stack([_step(files, number, ranks) for number in steps[start : start + step]])
        if physical.shape[1:] != to_logical.map.shape:
            raise BadInput(f"{files[steps[start], 0].parent}: steps differ in their layers or slots.")
        yield Block(to_logical(physical), current=to_logical.map, done=min(1.0, (start + step) / len(steps)))


def _step(files: dict[tuple[int, int], Path], step: int, ranks: range) -> AnyArray:
    """[L, P]"""
    parts = [_numbers(files[step, rank]) for rank in ranks]
    if len({len(part) for part in parts}) > 1:
        raise BadInput(f"{files[step, 0].parent}: the ranks of step {step} differ in their number of layers.")
    return np.concatenate(parts, axis=1)


def _numbers(file: Path) -> AnyArray:
    lines = [line.split() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    try:
        found = np.array(lines, dtype=np.int64)
    except ValueError as error:
        raise BadInput(f"{file} is no table of whole numbers ({str(error).splitlines()[0]}).") from error
    if found.ndim != 2:
        raise BadInput(f"{file} is empty.")
    return found
