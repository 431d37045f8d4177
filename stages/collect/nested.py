"""Reader of JSON: `logical_count` as nested lists, alone or named, or the load history of ADRS."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from stages.collect.arrays import COUNT, LABELS, MAP, TOKENS, needs_count
from stages.collect.dump import AnyArray, Block, Dump, of_array
from stages.errors import BadInput

HISTORY, STEP = "load_history", "logical_expert_load"
IN_MEMORY = 1 << 26
"""Files up to this many bytes are parsed whole: Python needs about ten times as much for them."""
STEPS_AT_ONCE = 64


def read_json(path: Path) -> Dump:
    """`{"logical_count": …}` with what an npz file may have besides, a bare nested list, or the load history of
    ADRS: `{"load_history": [{"logical_expert_load": [L][E]}, …]}`."""
    if path.stat().st_size > IN_MEMORY:
        return _streamed(path)
    value = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(value, list):
        return of_array(str(path), as_array(path, COUNT, value))
    if isinstance(value, dict) and isinstance(value.get(HISTORY), list):
        return of_array(str(path), as_array(path, HISTORY, [step[STEP] for step in value[HISTORY]]))
    if not isinstance(value, dict):
        raise BadInput(f"{path} holds neither an object with {COUNT} nor a nested list of counts.")
    needs_count(path, list(value))
    labels: list[object] = next((value[name] for name in LABELS if name in value), [])
    current, tokens = (as_array(path, name, value[name]) if name in value else None for name in (MAP, TOKENS))
    return of_array(str(path), as_array(path, COUNT, value[COUNT]), tuple(map(str, labels)), current, tokens)


def read_history(path: Path) -> Dump:
    """The load history of ADRS alone."""
    with path.open("rb") as stream:
        start = stream.read(IN_MEMORY)
    if f'"{HISTORY}"'.encode() not in start:
        raise BadInput(f"{path} has no {HISTORY}, as the load histories of ADRS have.")
    return read_json(path)


def _streamed(path: Path) -> Dump:
    """The same, step by step, of a file that is too large to be parsed whole. Labels and maps must be small."""
    top = _top(path)
    if HISTORY in top:
        prefix = f"{HISTORY}.item.{STEP}"
    elif not top:
        prefix = "item"
    else:
        needs_count(path, top)
        prefix = f"{COUNT}.item"
    beside: dict[str, Any] = {name: next(_items(path, name), None) for name in (*LABELS, MAP, TOKENS) if name in top}
    names: list[object] = next((beside[name] for name in LABELS if name in beside), [])
    labels = tuple(map(str, names))
    current, tokens = (as_array(path, name, beside[name]) if name in beside else None for name in (MAP, TOKENS))

    def blocks() -> Iterator[Block]:
        steps, start = _items(path, prefix), 0
        while part := list(islice(steps, STEPS_AT_ONCE)):
            count = as_array(path, f"the part from step {start}", part)
            if count.ndim != 3:
                raise BadInput(f"{path}: {prefix.removesuffix('.item')} must be [windows, layers, experts].")
            rows = slice(start, start + len(part))
            yield Block(count, labels[rows], None if tokens is None else tokens[rows], current, done=0.5)
            start = rows.stop
        if not start:
            raise BadInput(f"{path} is empty: it has no steps.")
        if labels and len(labels) != start:
            raise BadInput(f"{path} has {len(labels):,} labels for {start:,} windows.")

    return Dump(str(path), blocks)


def _top(path: Path) -> list[str]:
    """The keys of the object that the file is; none where it is a list."""
    import ijson

    with path.open("rb") as stream:
        events = ijson.parse(stream)
        if next(events)[1] != "start_map":
            return []
        return [value for prefix, event, value in events if event == "map_key" and prefix == ""]


def _items(path: Path, prefix: str) -> Iterator[Any]:
    import ijson

    with path.open("rb") as stream:
        yield from ijson.items(stream, prefix, use_float=True)


def as_array(path: Path, name: str, nested: object) -> AnyArray:
    """Nested lists of equal lengths as an array, of objects where they hold anything but numbers."""
    try:
        array = np.array(nested)
    except ValueError:
        raise BadInput(f"{path}: {name} is not rectangular: {_uneven(nested)}.") from None
    return array if array.dtype.kind in "iuf" else np.array(nested, dtype=object)


def _uneven(nested: object) -> str:
    """Where lists of one level differ in length, in words."""
    depth, item = 0, nested
    while isinstance(item, list) and item:
        depth, item = depth + 1, item[0]
    words = iter(("row", "layer", "expert")[-depth:] if depth <= 3 else ())
    level: list[tuple[str, object]] = [("the whole", nested)]
    while True:
        sizes = [len(item) if isinstance(item, list) else None for _, item in level]
        odd = next((n for n, size in enumerate(sizes) if size != sizes[0]), None)
        if odd is not None:
            return f"{level[0][0]} has {_size(sizes[0])}, but {level[odd][0]} has {_size(sizes[odd])}"
        word = next(words, "entry")
        level = [
            (f"{where}, {word} {n}".removeprefix("the whole, "), part)
            for where, item in level
            if isinstance(item, list)
            for n, part in enumerate(item)
        ]


def _size(size: int | None) -> str:
    return "no list" if size is None else f"{size} entries"
