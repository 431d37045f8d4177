"""What every expert must hash to: what all its holders agreed on before anything moved."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from stages.errors import Corruption
from stages.expert_map import EMPTY, ExpertMap

Sums = npt.NDArray[np.uint64]


def agreed_truth(before: Sums, old: ExpertMap, experts: int, tensors: Sequence[str], ranks: int) -> Sums:
    """[L, E, K] from the checksums `before` `[L, P, K]` of the slots of `old` `[L, P]`; 0 where nobody holds an expert.

    Raises `Corruption` that names the first expert whose holders differ: nobody can say which of them is right.
    """
    layers, slots, count = before.shape
    layer, slot = np.nonzero(old != EMPTY)
    expert = layer * experts + old[layer, slot]
    sums = before[layer, slot]
    truth = np.zeros((layers * experts, count), dtype=np.uint64)
    truth[expert[::-1]] = sums[::-1]  # the first holder's word, for now
    wrong = np.argwhere(sums != truth[expert])
    if len(wrong):
        first, k = wrong[0]
        holders = np.flatnonzero(expert == expert[first])
        told = ", ".join(
            f"slot {slot[n]} (rank {slot[n] // (slots // ranks)}) {int(sums[n, k]):016x}" for n in holders[:8].tolist()
        )
        raise Corruption(
            f"The replicas of expert {old[layer[first], slot[first]]} in layer {layer[first]} differ in tensor "
            f"{tensors[k]} before anything has moved: {told}{', …' if len(holders) > 8 else ''}; "
            f"{len({int(expert[n]) for n, _ in wrong})} experts disagree, and nothing was moved."
        )
    return truth.reshape(layers, experts, count)
