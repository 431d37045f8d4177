"""python -m tests.bench.bench_eplb

How much faster EPLB is for all layers at once than its published loops, at DeepSeek-V3 size: 58 layers of 256 experts
in 288 slots on 32 GPUs, lognormal loads, hierarchical (8 groups on 4 nodes) and global. Prints medians of several runs.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from stages.solvers import eplb
from tests.stages.solvers import reference_eplb

LAYERS, EXPERTS, SLOTS, GPUS = 58, 256, 288, 32
CASES = {"hierarchical": (8, 4), "global": (1, 1)}
RUNS = {"published loops": 5, "all layers at once": 21}


def median_seconds(function: Callable[[], object], runs: int) -> float:
    function()
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def main() -> None:
    weight = np.random.default_rng(0).lognormal(8.0, 1.0, (LAYERS, EXPERTS)).astype(np.int64)
    print(f"{LAYERS} x {EXPERTS} -> {SLOTS} slots, {GPUS} GPUs; torch {torch.__version__}, {os.cpu_count()} cores")
    for name, (groups, nodes) in CASES.items():
        sizes = (SLOTS, groups, nodes, GPUS)
        loops = median_seconds(
            lambda sizes=sizes: reference_eplb.rebalance_experts(torch.from_numpy(weight), *sizes),
            RUNS["published loops"],
        )
        ours = median_seconds(lambda sizes=sizes: eplb.rebalance_experts(weight, *sizes), RUNS["all layers at once"])
        print(
            f"{name:13} published loops {loops * 1e3:8.1f} ms   ours {ours * 1e3:6.2f} ms   {loops / ours:5.1f} times"
        )


if __name__ == "__main__":
    main()
