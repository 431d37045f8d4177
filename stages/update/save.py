"""Saving the slots of all ranks as shards of the run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stages import paths
from stages.errors import BadInput
from stages.update.config import UpdateStageConfig
from stages.update.job import Job
from stages.weight_shards import ShardIndex, Sums, write_index, write_shard

if TYPE_CHECKING:
    from stages.update.weights import Weights


def check_own_folder(config: UpdateStageConfig, folder: Path) -> None:
    """Raise `BadInput` if the weights come from what this run is going to replace; `folder`: what it writes into."""
    source = config.update.weights_path
    if source is not None and Path(source).expanduser().resolve().is_relative_to(folder.resolve().parent / "update"):
        raise BadInput(
            f"update.weights_path={source} is what an earlier run left in the folder that this run writes anew: give "
            "this one its own hydra.run.dir."
        )


def check_disk(config: UpdateStageConfig, job: Job) -> None:
    """Raise `BadInput` unless the run folder has room for what is to be saved."""
    if config.update.save is None:
        return
    needed = job.new.size * config.model.expert_bytes
    free = shutil.disk_usage(job.folder).free
    if needed > free:
        raise BadInput(
            f"update.save=shards needs {needed / 1e9:.1f} GB in {job.folder}, and {free / 1e9:.1f} GB are free there."
        )


def save_shard(config: UpdateStageConfig, job: Job, rank: int, weights: Weights, checksums: Sums) -> None:
    """Leave the slots of one rank in its file; `checksums`: `[L, slots_per_rank, K]`, of what they hold now."""
    own = job.new[:, rank * job.slots_per_rank : (rank + 1) * job.slots_per_rank]
    layer_ids = config.model.layer_ids(job.layers)
    specs = config.model.scaled_tensors()
    write_shard(Path(job.folder) / paths.SHARDS, rank, layer_ids, specs, weights, np.ascontiguousarray(own), checksums)


def finish_shards(config: UpdateStageConfig, job: Job, folder: Path) -> tuple[str, ...]:
    """Write the index when all ranks have saved; the names of all files below `folder`."""
    if config.update.save is None:
        return ()
    index = ShardIndex(
        layer_ids=config.model.layer_ids(job.layers),
        experts=job.experts,
        ranks=job.ranks,
        tensors=config.model.scaled_tensors(),
        physical_to_logical_map=job.new,
        origin=config.origin,
    )
    return tuple(f"{paths.SHARDS}/{name}" for name in write_index(folder / paths.SHARDS, index))
