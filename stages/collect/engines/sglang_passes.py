"""SGLang's `per_pass` and `per_token` dumps: every rank's counts of slots, put together by forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from stages.collect.dump import AnyArray, Block, Dump, rows_at_once
from stages.collect.engines.pages import MappedPages
from stages.collect.engines.physical import ToLogical, experts_of
from stages.collect.words import listed, many, numbered
from stages.errors import BadInput
from stages.model import ModelSpec

if TYPE_CHECKING:
    import torch

COUNT, TOKENS, MAP = "global_physical_count", "topk_ids_of_layer", "last_physical_to_logical_map"


@dataclass
class _Rank:
    """One rank's part of one dump: its records by forward pass and gatherer."""

    file: Path
    rank: int
    records: dict[int, dict[str, dict[str, Any]]] = field(default_factory=dict)
    twice: list[int] = field(default_factory=list)


def read(path: Path, values: dict[Path, dict[str, Any]], model: ModelSpec, *, strict: bool) -> Dump:
    """`values`: what each file holds, in order of time."""
    ranks = [_rank(file, value) for file, value in values.items()]
    ranks = [rank for rank in ranks if rank.records]
    if not ranks:
        raise BadInput(f"{path} has no records: the recorder was dumped before any forward pass.")
    to_logical = _mapping(path, values, model)
    dump = Dump(str(path), lambda: _blocks(dumps, passes, to_logical))
    dumps = _dumps(path, ranks)
    problems = _missing_ranks(path, dumps, dump.notes)
    passes = [_whole_passes(dumped, problems) for dumped in dumps]
    if problems and strict:
        raise BadInput(f"{path}: {problems[0]}; collect.on_bad=drop reads what there is.")
    dump.notes.extend(f"Left out or incomplete: {problem}" for problem in problems)
    if not any(passes):
        raise BadInput(f"{path} has no forward pass that all its ranks recorded.")
    return dump


def _rank(file: Path, value: dict[str, Any]) -> _Rank:
    found = value["records"]
    if not isinstance(found, list) or not all(isinstance(record, dict) for record in found):
        raise BadInput(f"{file}: records is no list of records.")
    part = _Rank(file, int(found[0].get("rank", 0)) if found else -1)
    for number, record in enumerate(found):
        if "forward_pass_id" not in record or (COUNT not in record and TOKENS not in record):
            raise BadInput(f"{file}: record {number} has no forward_pass_id or no {COUNT}; it has {listed(record, 8)}.")
        if int(record.get("rank", 0)) != part.rank:
            raise BadInput(
                f"{file} mixes ranks: record {number} is of rank {record['rank']}, the first of {part.rank}."
            )
        gatherers = part.records.setdefault(int(record["forward_pass_id"]), {})
        key = str(record.get("gatherer_key", "primary"))
        if key in gatherers:
            part.twice.append(int(record["forward_pass_id"]))
        else:
            gatherers[key] = record
    return part


def _mapping(path: Path, values: dict[Path, dict[str, Any]], model: ModelSpec) -> ToLogical:
    first: tuple[Path, npt.NDArray[np.int64]] | None = None
    for file, value in values.items():
        found = value.get(MAP)
        if found is None or getattr(found, "ndim", 0) != 2:
            raise BadInput(f"{file} has no {MAP} [layers, slots], without which slots cannot be told from experts.")
        here = found.numpy().astype(np.int64)
        if first is None:
            first = file, here
        elif not np.array_equal(first[1], here):
            raise BadInput(
                f"{path}: {file.name} has another {MAP} than {first[0].name}: the placement changed between them; "
                "read them apart."
            )
    assert first is not None
    return ToLogical(first[1], experts_of(first[1], model.experts), f"{first[0]}: {MAP}")


def _dumps(path: Path, ranks: list[_Rank]) -> list[list[_Rank]]:
    """The n-th file of every rank belongs to the n-th dump."""
    of_rank: dict[int, list[_Rank]] = {}
    for part in ranks:
        of_rank.setdefault(part.rank, []).append(part)
    most = max(map(len, of_rank.values()))
    fewer = [rank for rank, parts in of_rank.items() if len(parts) < most]
    if fewer:
        raise BadInput(
            f"{path}: rank {fewer[0]} has {many(len(of_rank[fewer[0]]), 'file')}, but other ranks have {most}: "
            "put the files of one dump into a folder of their own."
        )
    return [[parts[n] for _, parts in sorted(of_rank.items())] for n in range(most)]


def _missing_ranks(path: Path, dumps: list[list[_Rank]], notes: list[str]) -> list[str]:
    present = [part.rank for part in dumps[0]]
    if path.is_file():
        notes.append(f"The counts are those of rank {present[0]} alone: give the folder to add up all ranks")
        return []
    absent = sorted(set(range(max(present) + 1)) - set(present))
    return [f"{numbered('rank', absent)} missing, though there is rank {max(present)}"] if absent else []


def _whole_passes(dumped: list[_Rank], problems: list[str]) -> list[int]:
    """The forward passes of a dump that all its ranks recorded, in order; what is wrong goes into `problems`."""
    every = sorted(set().union(*(part.records for part in dumped)))
    whole = [one for one in every if all(one in part.records for part in dumped)]
    for part in dumped:
        gone = [one for one in every if one not in part.records]
        if gone:
            problems.append(f"rank {part.rank} has no record of {numbered('forward pass', gone)}")
        if part.twice:
            problems.append(f"rank {part.rank} has {numbered('forward pass', sorted(set(part.twice)))} more than once")
    return whole


def _blocks(dumps: list[list[_Rank]], passes: list[list[int]], to_logical: ToLogical) -> Iterator[Block]:
    layers, slots = to_logical.map.shape
    step = rows_at_once(layers * slots * 8)
    total, read = sum(map(len, passes)), 0
    for number, (dumped, whole) in enumerate(zip(dumps, passes, strict=True)):
        pages = {part.file: MappedPages.of(part.file) for part in dumped}
        for start in range(0, len(whole), step):
            chosen = whole[start : start + step]
            physical = np.zeros((len(chosen), layers, slots), dtype=np.int64)
            for part in dumped:
                for row, one in enumerate(chosen):
                    for record in part.records[one].values():
                        physical[row] += _slots(part.file, record, layers, slots, pages[part.file])
            read += len(chosen)
            yield Block(to_logical(physical), current=to_logical.map, file=number, done=read / total)


def _slots(file: Path, record: dict[str, Any], layers: int, slots: int, pages: MappedPages) -> AnyArray:
    """[L, P]: the counts of a record; of the choices of its tokens, where it has no counts."""
    counted = COUNT in record
    tensor: torch.Tensor = record[COUNT if counted else TOKENS]
    found = np.asarray(tensor.numpy())
    where = f"{file}: forward pass {record['forward_pass_id']}"
    if found.shape[0] != layers or (counted and found.shape != (layers, slots)):
        raise BadInput(f"{where} has counts of shape {list(found.shape)}, but the map is of {[layers, slots]}.")
    if not counted:
        layer, ids = np.arange(layers)[:, None], found.reshape(layers, -1)
        if ids.max(initial=-1) >= slots or ids.min(initial=-1) < -1:
            raise BadInput(f"{where} has {TOKENS} outside of -1 to {slots - 1}.")
        flat = (ids + 1 + layer * (slots + 1)).ravel()
        counts = np.bincount(flat, minlength=layers * (slots + 1)).reshape(layers, slots + 1)[:, 1:]
        pages.forget(tensor)
        return counts
    found = found.copy()
    pages.forget(tensor, *(other for key, other in record.items() if key == TOKENS))
    return found
