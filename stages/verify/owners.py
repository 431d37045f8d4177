"""Whose bytes a wrong slot holds: its old expert's, another expert's, or a bad copy that was there before."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stages.checksum_table import ChecksumTable
from stages.expert_map import EMPTY
from stages.verify.expected import Expectation, Filled, Ints, Mask, Sums


@dataclass(frozen=True)
class Wrong:
    """Checksums [M] that differ from what was expected; `after`: found after the update, not before it."""

    layer: Ints
    slot: Ints
    expert: Ints
    tensor: Ints
    expected: Sums
    found: Sums
    after: Mask


def name_owners(wrong: Wrong, table: ChecksumTable, before: Filled, expected: Expectation, experts: int) -> list[str]:
    """[M]: whose bytes each wrong one is, in words; empty where nobody's bytes are known to be these."""
    names = _Names()
    good = expected.checksum
    for group, tensor in zip(*_hits(good, wrong, expected.known), strict=True):
        layer, expert = divmod(group, experts)
        names.add(tensor, int(good[group, tensor]), layer, f"expert {expert} of layer {layer}", None)
    bad = before.found != good[before.group]
    for row, tensor in zip(*_hits(before.found, wrong, bad.any(axis=1)), strict=True):
        if bad[row, tensor]:
            layer, slot, expert = int(before.layer[row]), int(before.slot[row]), int(before.group[row]) % experts
            text = f"expert {expert} of layer {layer} as slot {slot} held it before"
            names.add(tensor, int(before.found[row, tensor]), layer, text, slot)

    old = table.old[wrong.layer, wrong.slot]
    stale = wrong.after & (old != EMPTY) & (old != wrong.expert)
    stale &= table.before[wrong.layer, wrong.slot, wrong.tensor] == wrong.found
    return [
        f"the slot's old expert {was} (not committed)"
        if kept
        else names.find(tensor, found, layer, None if after else slot)
        for was, kept, tensor, found, layer, slot, after in zip(
            *(c.tolist() for c in (old, stale, wrong.tensor, wrong.found, wrong.layer, wrong.slot, wrong.after)),
            strict=True,
        )
    ]


def _hits(checksums: Sums, wrong: Wrong, rows: Mask) -> tuple[list[int], list[int]]:
    """Rows and tensors of `checksums` [N, K] that some wrong slot holds, of those in `rows` [N]."""
    hit = np.zeros(checksums.shape, dtype=bool)
    for tensor in np.unique(wrong.tensor):
        hit[:, tensor] = np.isin(checksums[:, tensor], wrong.found[wrong.tensor == tensor]) & rows
    row, tensor = np.nonzero(hit)
    return row.tolist(), tensor.tolist()


class _Names:
    """Names by tensor and checksum, the first one first."""

    def __init__(self) -> None:
        self._names: dict[tuple[int, int], list[tuple[int, str, int | None]]] = {}

    def add(self, tensor: int, checksum: int, layer: int, text: str, slot: int | None) -> None:
        self._names.setdefault((tensor, checksum), []).append((layer, text, slot))

    def find(self, tensor: int, checksum: int, layer: int, but_slot: int | None) -> str:
        """A name in this layer if there is one, else any; never the slot's own."""
        found = [
            (at != layer, text)
            for at, text, slot in self._names.get((tensor, checksum), [])
            if not (at == layer and slot is not None and slot == but_slot)
        ]
        return min(found, key=lambda pair: pair[0], default=(False, ""))[1]
