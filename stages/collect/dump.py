"""What a source of loads says, row by row, before anything of it is checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from stages.errors import BadInput

AnyArray = npt.NDArray[np.generic]
BLOCK_BYTES = 1 << 22
"""Rows are handed on in blocks of about this size, so that a file of any size is read in bounded memory."""


@dataclass(frozen=True)
class Block:
    """Consecutive rows of a source.

    count:   [t, layers, E] of any dtype; the layers may include the dense ones of the model
    labels:  [t] names of the rows, or nothing
    tokens:  [t] tokens in each row, if the source says so
    current: the [layers, P] map that was in place while they were counted, if the source holds it
    file:    the number of the file that the rows come from
    done:    the fraction of the source that has been read, this block included
    """

    count: AnyArray
    labels: tuple[str, ...] = ()
    tokens: AnyArray | None = None
    current: AnyArray | None = None
    file: int = 0
    done: float = 1.0


@dataclass(frozen=True)
class Dump:
    """A source of loads.

    origin:    how messages name the source: the path of a file or folder, or the name of a sample
    blocks:    its rows from the beginning, as often as it is called
    advice:    a sentence for who uses the source with a model that it does not fit
    layer_ids: the engine's layer ids of the layers of `count`, where the source names them
    top_k:     experts per token, where the source says it
    notes:     what the reader had to leave out or take for granted, a sentence each
    """

    origin: str
    blocks: Callable[[], Iterator[Block]]
    advice: str = ""
    layer_ids: tuple[int, ...] | None = None
    top_k: int | None = None
    notes: list[str] = field(default_factory=list)


def rows_at_once(row_bytes: int) -> int:
    """How many rows of `row_bytes` make a block."""
    return max(1, BLOCK_BYTES // max(1, row_bytes))


def of_array(
    origin: str,
    count: AnyArray,
    labels: tuple[str, ...] = (),
    current: AnyArray | None = None,
    tokens: AnyArray | None = None,
    advice: str = "",
) -> Dump:
    """A dump of counts that are in memory or mapped from a file: [T, layers, E], or [layers, E] for one window."""
    check_shape(origin, count.shape)
    whole = count if count.ndim == 3 else count[None]
    check_rows(origin, len(whole), labels, tokens)
    step = rows_at_once(whole[0].nbytes)

    def blocks() -> Iterator[Block]:
        for start in range(0, len(whole), step):
            part = slice(start, start + step)
            yield Block(
                whole[part],
                labels[part],
                None if tokens is None else tokens[part],
                current,
                done=min(1.0, (start + step) / len(whole)),
            )

    return Dump(origin, blocks, advice)


def check_shape(origin: str, shape: tuple[int, ...]) -> None:
    if len(shape) not in (2, 3):
        raise BadInput(
            f"{origin}: logical_count has shape {list(shape)}; allowed are [windows, layers, experts] and "
            "[layers, experts]."
        )
    if 0 in shape:
        raise BadInput(f"{origin} is empty: logical_count has shape {list(shape)}.")


def check_rows(origin: str, rows: int, labels: tuple[str, ...], tokens: AnyArray | None) -> None:
    """Raise `BadInput` unless there is one label and one number of tokens for each row, if there are any."""
    for found, word in ((len(labels), "label"), (None if tokens is None else tokens.size, "number of tokens")):
        if found and found != rows:
            plural = word.replace("number", "numbers") if "number" in word else f"{word}s"
            raise BadInput(
                f"{origin} has {found:,} {word if found == 1 else plural} for {rows:,} window{'s' if rows != 1 else ''}."
            )
