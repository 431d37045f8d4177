"""What every tensor of every expert must be: by its source where that is known, else by those that hold it.

Shape letters: `K` tensors of an expert, `N` filled slots of a map over all layers, `G` = L·E experts of all layers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stages.expert_map import EMPTY, ExpertMap

Sums = npt.NDArray[np.uint64]
Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Filled:
    """The filled slots of a map, in order: `layer`, `slot`, `group` (layer·E + expert) [N], and `found` [N, K]."""

    layer: Ints
    slot: Ints
    group: Ints
    found: Sums

    def __len__(self) -> int:
        return len(self.group)

    @staticmethod
    def of(expert_map: ExpertMap, checksums: Sums, experts: int) -> Filled:
        layer, slot = np.nonzero(expert_map != EMPTY)
        return Filled(layer, slot, layer * experts + expert_map[layer, slot], checksums[layer, slot])


@dataclass(frozen=True)
class Expectation:
    """`checksum` [G, K] of the experts for which `known` [G] is true; `before`, `after` [N]: the slots of each map that
    have more to be compared with than themselves."""

    checksum: Sums
    known: Mask
    before: Mask
    after: Mask


def expectation(before: Filled, after: Filled, groups: int, truth: Sums | None) -> Expectation:
    """`truth` `[G, K]` where it is given, else what most old holders had, else (of an expert without one) what most
    of its new replicas have."""
    old, new = (np.bincount(filled.group, minlength=groups) for filled in (before, after))
    if truth is not None:
        return Expectation(truth, old + new > 0, np.ones(len(before), dtype=bool), np.ones(len(after), dtype=bool))
    checksum = np.where(old[:, None] > 0, majority(before, groups), majority(after, groups))
    return Expectation(checksum, old + new > 0, old[before.group] > 1, (old + (new > 1))[after.group] > 0)


def majority(filled: Filled, groups: int) -> Sums:
    """[G, K]: what most slots of each expert hold, of equally many the one with the first slot; 0 where none does."""
    tensors = filled.found.shape[1]
    group = (filled.group[:, None] * tensors + np.arange(tensors)).ravel()
    found = filled.found.ravel()
    order = np.lexsort((found, group))  # stable: equal checksums stay in order of slot
    group, found = group[order], found[order]
    starts = np.flatnonzero(np.append(True, (group[1:] != group[:-1]) | (found[1:] != found[:-1]))[: len(group)])
    votes = np.diff(np.append(starts, len(group)))
    best = np.lexsort((order[starts], -votes, group[starts]))
    winners = starts[best[np.unique(group[starts][best], return_index=True)[1]]]
    out = np.zeros(groups * tensors, dtype=np.uint64)
    out[group[winners]] = found[winners]
    return out.reshape(groups, tensors)
