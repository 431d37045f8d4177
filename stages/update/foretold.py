"""What the cost model said that an update would take, beside what it took."""

from __future__ import annotations

from stages.cost import Prediction, busiest_link
from stages.prediction import predict
from stages.update.config import UpdateStageConfig
from stages.update.job import Job


def foretold(config: UpdateStageConfig, job: Job, transport: str) -> Prediction:
    """Of the batches that the executor makes of the job, on the links of the config's topology."""
    options = config.update
    return predict(
        job.plan, job.layers, job.slots, config.topology, [spec.nbytes for spec in config.model.scaled_tensors()],
        executor=options.executor, one_group=job.direct, staging_mib=options.staging_mib, packs=transport != "peer",
        layers_per_step=options.layers_per_step, checked=options.verify_before_commit,
    )  # fmt: skip


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
