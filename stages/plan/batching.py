"""The batches that the pipelined executor makes of a plan, for predictions."""

from __future__ import annotations

import numpy as np

from stages.batches import cut
from stages.transfers import Ints, TransferPlan

AREAS = 4
"""How many batches are in staging at once: one is committed, one is checked, two are on their way."""
BATCHES = 24
BATCH_BYTES = (64 << 20, 256 << 20)
"""A rank receives what it needs in about so many batches, of bytes within these bounds."""


def batches_of(
    plan: TransferPlan, layers: int, slots: int, ranks: int, expert_bytes: int, staging_mib: float
) -> tuple[Ints, Ints]:
    """[N], [N]: the batch of each row, and the phase of the batch in which it goes."""
    if not len(plan):
        return plan.layer, plan.layer
    arrivals = np.bincount(plan.dst_rank[plan.network], minlength=1).max()
    nbytes = max(1, expert_bytes)
    fits = int(staging_mib * (1 << 20) / nbytes)
    wanted = max(1, min(max(-(-arrivals // BATCHES), BATCH_BYTES[0] // nbytes), arrivals, BATCH_BYTES[1] // nbytes))
    at_once = max(1, min(int(wanted), fits // AREAS))
    found = cut(plan, layers, slots, ranks, rows=max(2, min(fits, AREAS * at_once)), at_once=at_once)
    batch = np.where(found.stage >= 0, found.stage, np.maximum(found.commit, 0))
    return batch, np.maximum(found.phase, 0)
