"""What each rank of the background benchmark does."""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch

from stages.checksum import checksum_tensors
from stages.model import ModelSpec
from stages.synthetic import truth
from stages.update import ExpertLocationMetadata, ExpertLocationUpdater, set_global_expert_location_metadata
from stages.update.config import UpdateOptions
from stages.update.nccl_memory import registrable
from stages.update.rank import Rank
from stages.update.weights import allocate, fill_synthetic
from tests.gpu.models import random_map

SIZE = 8192


def measure(rank: Rank, model: ModelSpec, staging_mib: float, products: int, found: Path) -> None:
    assert model.layers is not None
    assert model.experts is not None
    rng = np.random.default_rng(0)
    slots = model.experts + 16
    maps = [random_map(rng, model.layers, model.experts, slots) for _ in range(4)]
    own = slice(rank.rank * slots // rank.ranks, (rank.rank + 1) * slots // rank.ranks)
    with registrable(rank.device):
        weights = allocate(model.scaled_tensors(), model.layers, slots // rank.ranks, rank.device)
    fill_synthetic(weights, 0, maps[0][:, own])
    held = torch.from_numpy(maps[0].copy()).to(rank.device)
    set_global_expert_location_metadata(ExpertLocationMetadata(held, rank.ranks))
    by_layer = dict(enumerate(weights))
    a, b, c = (torch.randn(SIZE, SIZE, dtype=torch.bfloat16, device=rank.device) for _ in range(3))

    def compute() -> float:
        """GPU seconds of the model's part between two calls."""
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(products):
            torch.matmul(a, b, out=c)
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3

    def call(updater: ExpertLocationUpdater, target: torch.Tensor) -> float:
        """GPU seconds that the model's stream waits for one call, once what is staged has arrived."""
        torch.cuda.current_stream().synchronize()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        updater.update(by_layer, ExpertLocationMetadata(target, rank.ranks), 1, rank.rank)
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3

    whole = ExpertLocationUpdater()
    whole.update(by_layer, ExpertLocationMetadata(torch.from_numpy(maps[1]).to(rank.device), rank.ranks), 1, rank.rank)
    options = UpdateOptions(journal=None, staging_mib=staging_mib)
    report: dict[str, object] = {}
    for number, target in enumerate(torch.from_numpy(m).to(rank.device) for m in maps[2:]):  # the first one warms up
        updater = ExpertLocationUpdater(options=options, background=True)
        for _ in range(8):
            compute()
        began = time.perf_counter()
        first, pauses, beside, quiet = call(updater, target), [], [], []
        while updater.pending:
            beside.append(compute())
            while not updater.ready:
                compute()
            quiet.append(compute())
            pauses.append(call(updater, target))
        alone = statistics.median(quiet)
        if number:
            report = {
                "calls": len(pauses),
                "products alone, ms": round(alone * 1e3, 3),
                "products beside staging, ms (median)": round(statistics.median(beside) * 1e3, 3),
                "slower by": f"{statistics.median(beside) / alone - 1:.1%}",
                "first call (compiles), ms": round(first * 1e3, 2),
                "wait at a commit, ms (median)": round(statistics.median(pauses) * 1e3, 3),
                "wait at a commit, ms (longest)": round(max(pauses) * 1e3, 3),
                "whole move in the background, ms": round((time.perf_counter() - began) * 1e3, 1),
            }
    torch.cuda.synchronize()
    seconds = []
    for target in (maps[1], maps[3]):  # the same move at once, for comparison
        began = time.perf_counter()
        whole.update(
            by_layer, ExpertLocationMetadata(torch.from_numpy(target).to(rank.device), rank.ranks), 1, rank.rank
        )
        seconds.append(time.perf_counter() - began)
    report["the same at once, with compiling and hashing, ms"] = round(seconds[-1] * 1e3, 1)
    layer, expert = (index.ravel() for index in np.indices((model.layers, model.experts)))
    expected = truth(model.scaled_tensors(), 0, layer, expert, "cuda").reshape(model.layers, model.experts, -1)
    found_sums = checksum_tensors([tensor for tensors in weights for tensor in tensors])
    kinds = len(weights[0])
    after = np.stack([np.stack(found_sums[i : i + kinds], axis=1) for i in range(0, len(found_sums), kinds)])
    wrong = int((after != expected[np.arange(model.layers)[:, None], maps[3][:, own]]).sum())
    report["checksums wrong afterwards"] = int(rank.slowest(wrong))
    if rank.rank == 0:
        found.write_text(json.dumps(report))
