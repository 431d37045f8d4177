"""python -m tests.bench.bench_plan

How long a full plan takes, with its schedule and its cost for both executors, and what it is worth: random maps with
replicas, from DeepSeek-V3 on 32 GPUs to 4,096 GPUs. Each line also shows the busiest link of `relay` against that of
`direct`, the rounds against their lower bound, the memory that planning took, and how long one rank needs to load its
program from the plan. Times are the best of several, in seconds of this process's CPU and of the wall.
"""

from __future__ import annotations

import os
import tempfile
import time
import tracemalloc
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stages import paths
from stages.batches import cut
from stages.cost import busiest_link
from stages.expert_map import ExpertMap
from stages.model import TensorSpec
from stages.needs import needs_between
from stages.plan.policies import Scheduled, schedule
from stages.prediction import predict
from stages.staging import Layout, budget
from stages.topology import Device, Link, Links, Topology
from stages.transfers import read_transfers, write_transfers
from stages.update.program import compile_program

TENSORS = [TensorSpec("w13", [4096, 7168], "float8_e4m3fn"), TensorSpec("w2", [7168, 2048], "float8_e4m3fn")]
SIZES = [tensor.nbytes for tensor in TENSORS]
NBYTES = sum(SIZES)
LINKS = Links(Link(349.0, 20.0), Link(50.0, 30.0))
DEVICE = Device(1200.0, 2900.0, 4000.0, 70.0, 60.0, 1.6)
STAGING_MIB = 1024.0
RUNS = 3


@dataclass(frozen=True)
class Case:
    name: str
    layers: int
    experts: int
    slots: int
    nodes: int
    target_seconds: float


CASES = (
    Case("DeepSeek-V3, 58 x 288", 58, 256, 288, 4, 0.2),
    Case("DeepSeek-V3, 58 x 288", 58, 256, 288, 36, 0.5),
    Case("Kimi-K2, 60 x 1024", 60, 384, 1024, 128, 1.5),
    Case("60 x 2048", 60, 384, 2048, 256, 3.0),
    Case("60 x 4096", 60, 384, 4096, 512, 6.0),
)


def maps_of(case: Case) -> tuple[ExpertMap, ExpertMap]:
    rng = np.random.default_rng(0)

    def one() -> ExpertMap:
        extra = rng.integers(0, case.experts, (case.layers, case.slots - case.experts))
        return rng.permuted(np.hstack([np.tile(np.arange(case.experts), (case.layers, 1)), extra]), axis=1)

    return one(), one()


def plan(case: Case, topology: Topology, policy: str, old: ExpertMap, new: ExpertMap) -> tuple[Scheduled, float, float]:
    """The plan, and what both executors take."""
    needs = needs_between(old, new, topology.ranks)
    needs.check_held()
    found = schedule(policy, needs, topology, case.layers, NBYTES, len(TENSORS), 64)
    rows = found.transfers
    reference, pipelined = (
        predict(
            rows, case.layers, case.slots, topology, SIZES,
            executor=executor, one_group=policy == "direct", staging_mib=STAGING_MIB,
        ).seconds
        for executor in ("reference", "pipelined")
    )  # fmt: skip
    return found, reference, pipelined


def load_seconds(found: Scheduled, case: Case, ranks: int) -> tuple[float, float]:
    """What the busiest rank needs to read the plan and to take its program out of it, and what the cut into batches
    takes before, which is made once a host."""
    plan = found.transfers
    arrivals = np.bincount(plan.dst_rank[plan.network], minlength=ranks)
    rank, most = int(np.argmax(arrivals)), int(arrivals.max())
    spent = budget(Layout.of(SIZES), STAGING_MIB, packs=True, most=most)
    cutting, loading = [], []
    with tempfile.TemporaryDirectory() as folder:
        write_transfers(Path(folder), plan)
        for _ in range(RUNS):
            start = time.perf_counter()
            batches = cut(
                plan, case.layers, case.slots, ranks, rows=spent.rows, at_once=spent.at_once, at_least=spent.at_least,
                sends_at_once=spent.sends_at_once, gpus_per_node=8,
            )  # fmt: skip
            cutting.append(time.perf_counter() - start)
            start = time.perf_counter()
            rows = read_transfers(Path(folder) / paths.TRANSFERS)
            compile_program(rows, batches, rank, case.slots // ranks)
            loading.append(time.perf_counter() - start)
    return min(loading), min(cutting)


def main() -> None:
    print(f"{os.cpu_count()} cores, numpy {np.__version__}; best of {RUNS}; seconds: CPU / wall")
    for case in CASES:
        for rails in (False, True):
            topology = Topology(nodes=case.nodes, gpus_per_node=8, rails=rails, links=LINKS, device=DEVICE)
            old, new = maps_of(case)
            plan(case, topology, "relay", old, new)  # compiles
            times = []
            for _ in range(RUNS):
                begin, start = time.process_time(), time.perf_counter()
                found, reference, pipelined = plan(case, topology, "relay", old, new)
                times.append((time.perf_counter() - start, time.process_time() - begin))
            wall, cpu = min(times)
            tracemalloc.start()
            plan(case, topology, "relay", old, new)
            peak = tracemalloc.get_traced_memory()[1] / 1e6
            tracemalloc.stop()
            direct, _, _ = plan(case, topology, "direct", old, new)
            worth = busiest_link(direct.transfers, topology)[1] / busiest_link(found.transfers, topology)[1]
            rows, ranks = len(found.transfers), topology.ranks
            loading, cutting = load_seconds(found, case, ranks)
            print(
                f"{case.name:22} {ranks:5} ranks{' on rails' if rails else '':9} {rows:7} rows  {cpu:6.3f} / {wall:6.3f} s "
                f"(target {case.target_seconds} s), {wall / rows * 1e6:4.1f} us a row, {peak:5.0f} MB  "
                f"rounds {found.rounds.rounds.sum():4} of at least {found.rounds.least.sum():4}  "
                f"busiest link of direct / relay {worth:4.2f}  "
                f"predicted {reference:6.3f} s reference, {pipelined:6.3f} s pipelined  "
                f"a rank loads in {loading * 1e3:4.1f} ms, its host cuts in {cutting * 1e3:5.1f} ms",
                flush=True,
            )


if __name__ == "__main__":
    main()
