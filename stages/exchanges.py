"""What goes over the network together: the first hops of a batch, with hops that forward what batches before it brought.

Hops of one tree go out one after the other, phase by phase, each as soon as the one before it is there. While an
expert spreads inside a node, the next batch crosses: exchange e has the hops of phase p of the batch that was opened p
exchanges before. A batch is opened by the exchange after the one that opened the batch before it, but not before all hops
of the batches are there whose commits it waits for.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from stages.transfers import Ints

NONE = -1


def phases_of(batch: Ints, phase: Ints, batches: int) -> Ints:
    """[B]: how many phases each batch has, where network row n goes out in `phase[n]` of `batch[n]`."""
    phases = np.ones(batches, dtype=np.int64)
    np.maximum.at(phases, batch, phase + 1)
    return phases


def opened_by(after: Ints, phases: Ints, first: int = 0) -> Ints:
    """[B]: the exchange with the first hops of each batch from `first` on; -1 before. `after`, `phases` [B]: see
    `Program`."""
    opened = np.full(len(after), NONE, dtype=np.int64)
    through = np.zeros(
        len(after) + 1, dtype=np.int64
    )  # [b]: exchanges until all hops of the batches before b are there
    for batch in range(first, len(after)):
        before = opened[batch - 1] + 1 if batch > first else 0
        opened[batch] = max(before, through[after[batch] + 1])
        through[batch + 1] = max(through[batch], opened[batch] + phases[batch])
    return opened


@dataclass(frozen=True)
class Exchange:
    """`opens`: the batch whose first hops it has, or -1. `hops`: batch and phase of all of its hops."""

    opens: int
    hops: tuple[tuple[int, int], ...]


class Schedule:
    """The exchanges of the batches from `first` on, in the order in which all ranks make them."""

    def __init__(self, after: Ints, phases: Ints, first: int = 0) -> None:
        opened = opened_by(after, phases, first)
        hops: dict[int, list[tuple[int, int]]] = defaultdict(list)
        opens = {int(opened[batch]): batch for batch in range(first, len(after))}
        for batch in range(first, len(after)):
            for phase in range(int(phases[batch])):
                hops[int(opened[batch]) + phase].append((batch, phase))
        self._exchanges = [Exchange(opens.get(n, NONE), tuple(hops[n])) for n in sorted(hops)]
        self._last = (opened + phases - 1).tolist()
        self._next = 0

    def due(self, batch: int) -> list[tuple[int, Exchange]]:
        """The exchanges, with their numbers, that are still to be made for all of `batch` to arrive; made once told."""
        begin, self._next = self._next, max(self._next, self._last[batch] + 1)
        return [(n, self._exchanges[n]) for n in range(begin, self._next)]

    def last(self, batch: int) -> int:
        """The exchange after which all of `batch` is there."""
        return int(self._last[batch])
