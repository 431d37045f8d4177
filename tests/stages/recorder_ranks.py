"""A rank that counts its own tokens, and then those of all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from stages.load import write_load
from stages.recorder import ExpertLoadRecorder


def part_of(rank: int) -> np.ndarray:
    """[2, 3, 5]: what rank `rank` counts in two windows."""
    return np.random.default_rng(rank).integers(0, 9, (2, 3, 5))


def count_on_rank(rank: int, world_size: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size)
    recorder = ExpertLoadRecorder(3, 5)
    for window, label in zip(part_of(rank), "ab", strict=True):
        for layer, row in enumerate(window):
            recorder.record(layer, torch.from_numpy(np.repeat(np.arange(5), row)))
        recorder.end_window(label)
    calls = 0
    reduce = dist.all_reduce

    def counted(*args: object, **kwargs: object) -> object:
        nonlocal calls
        calls += 1
        return reduce(*args, **kwargs)

    dist.all_reduce = counted
    load = recorder.load_stats()
    write_load(Path(folder) / str(rank), load)
    (Path(folder) / str(rank) / "calls").write_text(str(calls))
    dist.barrier()
    dist.destroy_process_group()
