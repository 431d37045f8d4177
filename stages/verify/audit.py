"""The comparison of every filled slot and tensor, before and after the update, with what it must be."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stages.checksum_table import ChecksumTable
from stages.verdict import Mismatch
from stages.verify.expected import Filled, Ints, Mask, Sums, expectation
from stages.verify.owners import Wrong, name_owners


@dataclass(frozen=True)
class Audit:
    """`mismatches` in order of layer, slot and tensor; how many slots of each map had something to compare with."""

    mismatches: list[Mismatch]
    slots_before: int
    slots_after: int


def audit(table: ChecksumTable, experts: int, truth: Sums | None) -> Audit:
    """Compare the checksums with `truth` `[L·E, K]` where it is known, and with each other.

    A wrong tensor of a slot is one mismatch: against the old holders if one of them had the right bytes, else against
    the source, else against the replicas. What was wrong before the update is a mismatch against the replicas or the
    source, unless the slot keeps its expert and is still wrong: then it is reported as it is now.
    """
    groups = table.old.shape[0] * experts
    before, after = Filled.of(table.old, table.before, experts), Filled.of(table.new, table.after, experts)
    expected = expectation(before, after, groups, truth)
    bad_before, bad_after = (filled.found != expected.checksum[filled.group] for filled in (before, after))
    right_before = np.zeros((groups, len(table.tensors)), dtype=bool)
    right_before[_where(~bad_before, before.group)] = True

    still_bad = np.zeros(table.after.shape, dtype=bool)
    still_bad[_where(bad_after, after.layer, after.slot)] = True
    still_bad &= (table.old == table.new)[:, :, None]
    bad_before &= ~still_bad[before.layer, before.slot]

    wrong = _collect(before, bad_before, after, bad_after, expected.checksum, experts)
    held = right_before[wrong.layer * experts + wrong.expert, wrong.tensor]
    by_holders = np.where(wrong.after, "old holders", "replicas")
    against = np.where(held, by_holders, "replicas" if truth is None else "source").tolist()
    whose = name_owners(wrong, table, before, expected, experts)
    return Audit(_mismatches(wrong, table, against, whose), int(expected.before.sum()), int(expected.after.sum()))


def _where(mask: Mask, *columns: Ints) -> tuple[Ints, ...]:
    """The index arrays of the true entries of `mask` [N, K]: the `columns` [N] of their rows, and their tensors."""
    row, tensor = np.nonzero(mask)
    return (*(column[row] for column in columns), tensor)


def _collect(before: Filled, bad_before: Mask, after: Filled, bad_after: Mask, expected: Sums, experts: int) -> Wrong:
    """All bad checksums [M], in order of layer, slot and tensor, before the update first."""
    parts = []
    for filled, bad in ((before, bad_before), (after, bad_after)):
        layer, slot, group, tensor = _where(bad, filled.layer, filled.slot, filled.group)
        is_after = np.full(len(group), filled is after)
        parts.append((layer, slot, group % experts, tensor, expected[group, tensor], filled.found[bad], is_after))
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    layer, slot, _, tensor, _, _, is_after = columns
    order = np.lexsort((is_after, tensor, slot, layer))
    return Wrong(*(column[order] for column in columns))


def _mismatches(wrong: Wrong, table: ChecksumTable, against: list[str], whose: list[str]) -> list[Mismatch]:
    per_rank = table.old.shape[1] // table.ranks
    columns = (wrong.layer, wrong.slot, wrong.expert, wrong.tensor, wrong.expected, wrong.found, wrong.after)
    return [
        Mismatch(
            layer=layer,
            slot=slot,
            rank=slot // per_rank,
            logical_expert=expert,
            tensor=table.tensors[tensor],
            expected=f"{expected:016x}",
            found=f"{found:016x}",
            against=against_what,
            whose=owner,
            when="after" if after else "before",
        )
        for layer, slot, expert, tensor, expected, found, after, against_what, owner in zip(
            *(column.tolist() for column in columns), against, whose, strict=True
        )
    ]
