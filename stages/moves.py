"""Which experts changed their GPUs between two maps, as a table that a person reads."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from stages import paths
from stages.expert_map import ExpertMap, counts_per_rank

Ints = npt.NDArray[np.int64]

COLUMNS = ("layer", "expert", "GPUs before", "GPUs after", "arrives on", "leaves")


class Move(NamedTuple):
    """GPUs that hold an expert of a layer, a GPU once for each replica."""

    layer: int
    expert: int
    before: list[int]
    after: list[int]

    @property
    def arrives(self) -> list[int]:
        return sorted(set(self.after) - set(self.before))

    @property
    def leaves(self) -> list[int]:
        return sorted(set(self.before) - set(self.after))

    def cells(self) -> list[str]:
        """Under `COLUMNS`."""
        gpus = (self.before, self.after, self.arrives, self.leaves)
        return [str(self.layer), str(self.expert), *(" ".join(map(str, some)) for some in gpus)]


@dataclass(frozen=True)
class Moves:
    """`layer`, `expert` [M], in this order: the experts that have other replicas on some GPU than before. `before`,
    `after` [M, R]: replicas on each GPU."""

    layer: Ints
    expert: Ints
    before: Ints
    after: Ints

    def __len__(self) -> int:
        return len(self.layer)

    def __iter__(self) -> Iterator[Move]:
        gpus = np.arange(self.before.shape[1])
        for layer, expert, before, after in zip(self.layer, self.expert, self.before, self.after, strict=True):
            yield Move(int(layer), int(expert), np.repeat(gpus, before).tolist(), np.repeat(gpus, after).tolist())

    @property
    def arrivals(self) -> int:
        """GPUs that hold an expert which they did not hold before, over all experts and layers."""
        return int(((self.after > 0) & (self.before == 0)).sum())


def moves_between(old: ExpertMap, new: ExpertMap, experts: int, old_ranks: int, new_ranks: int) -> Moves:
    """Of two maps `[L, P]` of the same layers and experts, whose slots and GPUs may differ."""
    ranks = max(old_ranks, new_ranks)
    before, after = (
        np.pad(counts_per_rank(each, experts, own), ((0, 0), (0, ranks - own), (0, 0)))
        for each, own in ((old, old_ranks), (new, new_ranks))
    )
    layer, expert = np.nonzero((before != after).any(axis=1))
    return Moves(layer, expert, before[layer, :, expert], after[layer, :, expert])


def write_moves(folder: Path, moves: Moves) -> tuple[str, ...]:
    """Write the table, which the tracking UI shows; its name."""
    with paths.atomic(folder / paths.MOVES) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(move.cells() for move in moves)
    return (paths.MOVES,)
