"""What to say of an update that stopped before its end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from stages.transfers import Ints
from stages.update.lane import Fault

if TYPE_CHECKING:
    from stages.update.rank import Rank


def all_faults(rank: Rank, own: Sequence[Fault]) -> Ints:
    """[F, 8]: what every rank has found, its number and then the fields of each `Fault`. All ranks call it."""
    rows = np.array([(rank.rank, *fault.numbers()) for fault in own], dtype=np.int64).reshape(-1, 8)
    found = np.concatenate(list(rank.gather_rows(rows)))
    return found[found[:, 0] >= 0]


def why_stopped(
    faults: Ints, tensors: Sequence[str], layer_ids: Sequence[int], tries: int, committed: int, batches: int
) -> str:
    """One sentence: what arrived wrong, where and how often, and how far the update has come. `faults`: `[F, 8]`."""
    rank, fault = int(faults[0, 0]), Fault.of(faults[0, 1:])
    more = f" and {len(faults) - 1} more" if len(faults) > 1 else ""
    return (
        f"Expert {fault.expert} of layer {layer_ids[fault.layer]} arrived wrong at rank {rank} from rank {fault.sender} "
        f"each time it was sent ({tries} times): tensor {tensors[fault.tensor]} should be {fault.expected:016x}, found "
        f"{fault.found:016x}{more}; nothing wrong was committed, and {committed} of {batches} batches are"
    )
