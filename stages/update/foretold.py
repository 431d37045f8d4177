"""What the cost model said that an update would take, beside what it took."""

from __future__ import annotations

import numpy as np

from stages.batches import cut
from stages.cost import Prediction, busiest_link, predict_pipelined, predict_reference
from stages.update.config import UpdateStageConfig
from stages.update.job import Job


def foretold(config: UpdateStageConfig, job: Job, transport: str) -> Prediction:
    """Of the batches that the executor makes of the job, on the links of the config's topology."""
    topology, tensors = config.topology, len(config.model.tensors)
    if config.update.executor == "reference":
        return predict_reference(job.plan, topology, job.layers, tensors, one_group=job.direct)
    if not len(job.plan):
        return predict_pipelined(job.plan, job.plan.layer, job.plan.round, topology, tensors)
    spent = config.staging_budget(transport, job.most_arrivals())
    batches = cut(
        job.plan, job.layers, job.slots, job.ranks,
        rows=spent.rows, at_once=spent.at_once, at_least=spent.at_least, sends_at_once=spent.packed,
    )  # fmt: skip
    batch = np.where(batches.stage >= 0, batches.stage, np.maximum(batches.commit, 0))
    return predict_pipelined(job.plan, batch, np.maximum(batches.phase, 0), topology, tensors)


def beside(config: UpdateStageConfig, job: Job, found: Prediction, seconds: float) -> str:
    """Markdown that sets the prediction beside the `seconds` that the update took."""
    link, busy = busiest_link(job.plan, config.topology)
    if not found.seconds or not seconds:
        return ""
    off = found.seconds / seconds - 1
    return (
        f"\nPredicted: {found.seconds * 1e3:.1f} ms, which is {abs(off):.0%} too {'much' if off > 0 else 'little'}, on "
        f"the links of topology `{config.topology.name}`; busiest: {link or 'none'}, {busy * 1e3:.1f} ms at its full "
        "speed. `moesaic doctor --calibrate` measures the links of this machine.\n"
    )
