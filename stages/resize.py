"""Maps over other ranks and slots than those of the update: put into one frame, in which an empty slot says that nothing
is there, or shall be.

The frame has the ranks of the topology, each with as many slots as the larger of the two maps gives it. A GPU that is
added holds nothing in the old map, one that leaves holds nothing in the new one, and one that was lost is no source.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stages.expert_map import EMPTY, ExpertMap, slots_per_rank


def framed(expert_map: ExpertMap, of_ranks: int, ranks: int, per_rank: int) -> ExpertMap:
    """[L, ranks * per_rank]: `expert_map` over its first `of_ranks` ranks; what has no place there is left out."""
    layers, own = len(expert_map), slots_per_rank(expert_map, of_ranks)
    out = np.full((layers, ranks, per_rank), EMPTY, dtype=np.int64)
    kept_ranks, kept = min(of_ranks, ranks), min(own, per_rank)
    out[:, :kept_ranks, :kept] = expert_map.reshape(layers, of_ranks, own)[:, :kept_ranks, :kept]
    return out.reshape(layers, ranks * per_rank)


def without_ranks(expert_map: ExpertMap, of_ranks: int, lost: Sequence[int], *, close_up: bool) -> ExpertMap:
    """What is left when the ranks `lost` are: with `close_up` the others are numbered anew, in order, else the lost ones
    keep their numbers and hold nothing (other GPUs stand in their places)."""
    by_rank = expert_map.reshape(len(expert_map), of_ranks, slots_per_rank(expert_map, of_ranks))
    if close_up:
        return np.delete(by_rank, list(lost), axis=1).reshape(len(expert_map), -1)
    left = by_rank.copy()
    left[:, list(lost)] = EMPTY
    return left.reshape(expert_map.shape)
