"""A run of any size, made: what its stages would have left, and a report's material read back from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pipeline.keys import Manifest, write_manifest
from pipeline.report.material import Material, Origin, gather
from pipeline.summary import StageState, Summary
from stages import paths
from stages.balance import gpu_load, lower_bound
from stages.execution import Execution, write_execution
from stages.expert_map import contiguous_map
from stages.functional import FunctionalProof, to_json
from stages.gpu_balance import GpuBalance, write_gpu_balance
from stages.load import LoadStats, write_load
from stages.placement import Placement, write_placement
from stages.update.measured import TIMED, Measured
from stages.update.moved import EVENTS
from stages.update.trace import write_trace
from stages.verdict import Mismatch, Verdict, write_verdict

STAGES = ("collect", "place", "plan", "update", "verify")


def measured(ranks: int, batches: int, seed: int = 0) -> Measured:
    rng = np.random.default_rng(seed)
    edges = np.cumsum(rng.uniform(0.1, 0.5, (ranks, len(TIMED), 2)).reshape(ranks, -1), axis=1)
    spans = edges.reshape(ranks, len(TIMED), 2)
    what, step = np.meshgrid(np.arange(1, len(EVENTS)), np.arange(batches))
    begin = spans[:, 4, :1] + np.sort(rng.uniform(0, 0.4, (ranks, what.size)), axis=1)
    events = np.stack(
        [
            *np.broadcast_to(np.stack([what.ravel(), step.ravel()])[:, None], (2, ranks, what.size)),
            begin,
            begin + 0.002,
        ],
        axis=2,
    )
    small = np.zeros(ranks, dtype=np.int64)
    return Measured(
        before=np.zeros((1, ranks, 1), dtype=np.uint64), after=np.zeros((1, ranks, 1), dtype=np.uint64),
        received=small, sent=small, staging=small, peak=small, seconds=np.full(ranks, 0.2), spans=spans, events=events,
        faults=np.zeros((0, 8), dtype=np.int64), held=np.zeros((1, ranks), dtype=np.int64),
        steps=np.array([0, batches, batches, 0]), link_gb_per_s=np.ones(1),
        functional=np.frombuffer(to_json(FunctionalProof()), dtype=np.uint8),
    )  # fmt: skip


def leave(
    folder: Path,
    *,
    layers: int = 3,
    experts: int = 8,
    nodes: int = 2,
    gpus_per_node: int = 2,
    slots: int = 12,
    batches: int = 2,
    upto: str = "verify",
    wrong: int = 0,
    status: str = "verified",
    cause: str | None = None,
    origin: Origin | None = None,
) -> Material:
    """Write what the stages up to `upto` leave, with the stages' own writers, and read it back."""
    rng = np.random.default_rng(0)
    ranks, nbytes = nodes * gpus_per_node, 1_000_000
    stages = STAGES[: STAGES.index(upto) + 1]
    for stage in stages:
        (folder / stage).mkdir(parents=True)
    load = LoadStats(rng.zipf(1.6, (4, layers, experts)).clip(max=5000).astype(np.int64))
    write_load(folder / "collect", load)
    new = np.stack([rng.permutation(np.arange(slots) % experts) for _ in range(layers)]).astype(np.int64)
    old = contiguous_map(layers, experts, slots)
    total = load.total()
    before, after = gpu_load(total, old, ranks), gpu_load(total, new, ranks)
    matrix = rng.integers(0, 50, (ranks, ranks)) * nbytes
    np.fill_diagonal(matrix, 0)
    received = matrix.sum(axis=0)
    writers = {
        "place": lambda f: (
            write_placement(f, Placement(new, old, experts)),
            write_gpu_balance(f, GpuBalance(before, after, lower_bound(total, slots, ranks))),
        ),
        "plan": lambda f: paths.write_json(f / paths.TRAFFIC, _traffic(matrix, nodes, gpus_per_node)),
        "update": lambda f: (
            write_execution(f, _execution(received.tolist(), ranks, batches)),
            write_trace(f, measured(ranks, batches)),
        ),
        "verify": lambda f: write_verdict(f, _verdict(wrong)),
    }
    metrics: dict[str, dict[str, float]] = {
        "place": {"balancedness": 0.9, "balancedness_before": 0.5, "balancedness_worst_layer": 0.8, "moved_slots": 17},
        "plan": {"moved_bytes": float(received.sum()), "predicted_seconds": 0.5},
        "update": {"update_seconds": 0.25},
        "verify": {"checksums_compared": 1000, "mismatches": wrong},
    }
    states = {}
    for stage in STAGES:
        if stage not in stages:
            states[stage] = StageState("skipped", "not asked for")
            continue
        if stage in writers:
            writers[stage](folder / stage)
        key = f"{stage}-key"
        state = "failed" if stage == stages[-1] and status == "failed" else "ran"
        states[stage] = StageState(state, "first run", 1.5, "ab" * 16, key, metrics.get(stage, {}))
        inputs = {"collect.path": "d" * 64} if stage == "collect" else {}
        outputs = {file.name: "f" * 64 for file in (folder / stage).iterdir()}
        write_manifest(folder / stage, Manifest(stage, key, "c" * 64, {}, inputs, outputs, {}, {}, "then", 1.5))
    topology = {"name": "made", "nodes": nodes, "gpus_per_node": gpus_per_node}
    return gather(folder, Summary("ab" * 16, states, status, cause), origin or Origin({"topology": topology}))


def _traffic(matrix: np.ndarray, nodes: int, gpus_per_node: int) -> dict[str, Any]:
    return {
        "nodes": nodes, "gpus_per_node": gpus_per_node, "rows": {"same_gpu": 3, "cross_node": 5},
        "same_node_bytes": 10_000_000, "cross_node_bytes": 20_000_000, "relay_bytes": 0, "least_cross_node_bytes": 5_000_000,
        "recv": {"bytes_of_gpu": matrix.sum(axis=0).tolist()},
        "bytes_from_rank_to_rank": matrix.tolist(),
        "predicted": {"seconds": 0.5, "lower_bound_seconds": 0.1, "busiest_link": "GPU 1 in", "busiest_link_seconds": 0.05},
    }  # fmt: skip


def _execution(received: list[int], ranks: int, batches: int) -> Execution:
    return Execution(
        executor="pipelined", backend="gloo", ranks=ranks, hosts=1, device="CPU", torch="2", nccl=None,
        update_seconds=0.25, received_bytes=received, sent_bytes=received, link_gb_per_s=1.0, staging_bytes=1000,
        checksum_seconds=0.1, rank_seconds=[0.25] * ranks, layer_seconds=[], batches=batches, committed=batches,
        split={"pack": 0.01, "network": 0.2},
    )  # fmt: skip


def _verdict(wrong: int) -> Verdict:
    mismatches = [
        Mismatch(2, 5 + n, 1, 7, "w2_weight", "aaaa", "bbbb", "old holders", "expert 3 of layer 1")
        for n in range(wrong)
    ]
    return Verdict(not wrong, 1000, mismatches, ["Compared all slots."], 10**9, 0.5)
