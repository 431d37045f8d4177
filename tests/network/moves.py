"""torchrun … -m tests.network.moves OUT NODES: measures the links, then carries out the same maps by each policy.

Every rank runs this. Rank 0 writes into OUT, for each policy, the seconds predicted from the links measured and those
that the update took, after every slot has been compared with the truth.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from stages.cost import predict_reference
from stages.expert_map import ExpertMap
from stages.model import ModelSpec, TensorSpec
from stages.needs import needs_between
from stages.plan.policies import schedule
from stages.plan.traffic import count_traffic
from stages.synthetic import truth
from stages.topology import Topology
from stages.update.calibrate import measure
from stages.update.config import UpdateOptions, UpdateStageConfig
from stages.update.job import Job, make_job
from stages.update.measured import Measured
from stages.update.progress_board import ProgressBoard
from stages.update.rank import Rank, joined
from stages.update.seat import find_seat
from stages.update.stores import join_store, prefixed
from stages.update.worker import update_rank

LAYERS, PER_NODE, PER_RANK, FOREIGN = 6, 8, 8, 6
MODEL = ModelSpec(tensors=[TensorSpec("w13", [1024, 640], "bfloat16"), TensorSpec("w2", [512, 640], "bfloat16")])


def maps_of(nodes: int, gpus_per_node: int) -> tuple[ExpertMap, ExpertMap]:
    """[L, P] each: every GPU of node n holds experts 8 n to 8 n + 7; every GPU but those of node 0 shall hold some six of
    the node before instead.

    Between two hosts all goes one way. `tc tbf` has one queue, where acknowledgements wait behind the data that goes
    the other way; networks of GPUs know nothing of that, and predictions neither.
    """
    rng = np.random.default_rng(0)
    old, new = [], []
    for _ in range(LAYERS):
        for node in range(nodes):
            own, foreign = np.arange(PER_NODE) + PER_NODE * node, np.arange(PER_NODE) + PER_NODE * (node - 1)
            for _ in range(gpus_per_node):
                brought = rng.permutation(foreign)[: FOREIGN if node else 0]
                old.append(own)
                new.append(np.concatenate([brought, rng.permutation(own)[: PER_RANK - len(brought)]]))
    return tuple(np.concatenate(slots).reshape(LAYERS, -1) for slots in (old, new))  # type: ignore[return-value]


def run_policy(rank: Rank, policy: str, topology: Topology) -> dict[str, float]:
    old, new = maps_of(topology.nodes, topology.gpus_per_node)
    nbytes, tensors = MODEL.expert_bytes, len(MODEL.tensors)
    needs = needs_between(old, new, rank.ranks)
    plan = schedule(policy, needs, topology, LAYERS, nbytes, tensors, 64).transfers
    job = make_job(old, new, plan, rank.ranks, topology.gpus_per_node, nbytes)
    assert job.direct == (policy == "direct")
    predicted = predict_reference(plan, topology, LAYERS, tensors, one_group=job.direct)
    config = UpdateStageConfig(UpdateOptions(link_mib=1), MODEL, topology, 7)
    measured = update_rank(rank, config, job)
    return {
        "predicted": predicted.seconds,
        "measured": float(measured.seconds.max()),
        "cross_node_bytes": count_traffic(plan, topology, LAYERS).cross_node_bytes,
        "relays": int((plan.kind == 4).sum()),
        "wrong": wrong(job, measured),
        "compared": measured.after.size,
    }


def wrong(job: Job, measured: Measured) -> int:
    """Checksums after the update that are not those of the new map, by the generator alone."""
    layer, slot = np.indices(job.new.shape).reshape(2, -1)
    expected = truth(MODEL.scaled_tensors(), 7, layer, job.new[layer, slot])
    return int((measured.after[layer, slot] != expected).sum())


def main(out: Path, nodes: int) -> None:
    seat = find_seat()
    assert seat is not None
    store = prefixed("moves", join_store(seat.address, seat.port, 120.0))
    board = ProgressBoard(None, seat.ranks)
    with joined(
        store, seat.rank, seat.ranks, backend="gloo", local_rank=seat.local_rank, timeout_seconds=120.0, board=board
    ) as rank:
        topology = measure(rank, Topology("measured", nodes, seat.ranks // nodes))
        found: dict[str, object] = {policy: run_policy(rank, policy, topology) for policy in ("direct", "relay")}
        found["node_gb_per_s"] = topology.node_gb_per_s
        if rank.rank == 0:
            out.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
