"""Random updates, and what their outcome must be. numpy alone, so that GPU tests can use it too."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from stages.direct import direct_transfers
from stages.expert_map import EMPTY, ExpertMap, moved_slots
from stages.model import ModelSpec, TensorSpec
from stages.staging import MIB, Layout
from stages.synthetic import truth
from stages.topology import Topology
from stages.transfers import Kind, TransferPlan
from stages.update.config import UpdateOptions, UpdateStageConfig
from stages.update.job import Job, make_job
from stages.update.measured import Measured

TENSORS = [
    TensorSpec("w13", [24, 40], "bfloat16"),
    TensorSpec("w2", [12, 1030], "float8_e4m3fn"),
    TensorSpec("w2_scale", [3], "float32"),
    TensorSpec("blocks", [7, 13], "uint8"),
    TensorSpec("scales", [5], "float8_e8m0fnu"),
]
EXPERT_BYTES = sum(tensor.nbytes for tensor in TENSORS)


@dataclass(frozen=True)
class Case:
    """`kind`: `random` maps, a `permutation` of each layer, or maps with `empty` slots; or to `grow` from half of the ranks
    to all, to `shrink` to half of them, or to replace rank 0, which was `lost`.

    `rows`: how the plan is run: through the `api`, from its `rows`, from rows that `relay` by way of any third rank, or
    from those of the policies `direct` and `relay` with their rounds (`planned direct`, `planned relay`).

    `staged`: experts that staging holds; None: the reference executor, which stages a layer.
    """

    nodes: int
    slots_per_rank: int
    experts: int
    kind: str = "random"
    rows: str = "api"
    layers: int = 3
    seed: int = 0
    staged: int | None = None


def maps_of(case: Case, ranks: int) -> tuple[ExpertMap, ExpertMap]:
    rng = np.random.default_rng([case.seed, ranks, case.slots_per_rank, case.experts])
    slots = ranks * case.slots_per_rank

    def one() -> ExpertMap:
        extra = rng.integers(0, case.experts, (case.layers, slots - case.experts))
        if case.kind == "empty":
            extra[rng.random(extra.shape) < 0.5] = EMPTY
        return rng.permuted(np.hstack([np.tile(np.arange(case.experts), (case.layers, 1)), extra]), axis=1)

    def on_some(ranks_with: slice) -> ExpertMap:
        found = np.full((case.layers, ranks, case.slots_per_rank), EMPTY)
        part = found[:, ranks_with].reshape(case.layers, -1)
        extra = rng.integers(0, case.experts, (case.layers, part.shape[1] - case.experts))
        held = rng.permuted(np.hstack([np.tile(np.arange(case.experts), (case.layers, 1)), extra]), axis=1)
        found[:, ranks_with] = held.reshape(case.layers, -1, case.slots_per_rank)
        return found.reshape(case.layers, slots)

    if case.kind == "grow":
        return on_some(slice(0, ranks // 2)), one()
    if case.kind == "shrink":
        return one(), on_some(slice(0, ranks // 2))
    if case.kind == "lost":
        return on_some(slice(1, ranks)), one()
    old = one()
    return old, rng.permuted(old, axis=1) if case.kind == "permutation" else one()


def job_of(case: Case, ranks: int) -> Job:
    old, new = maps_of(case, ranks)
    plan = direct_transfers(old, new, ranks, ranks // case.nodes, EXPERT_BYTES)
    if case.rows == "relay":
        plan = relayed(plan, ranks)
    if case.rows.startswith("planned"):
        from stages.needs import needs_between
        from stages.plan.policies import schedule

        topology = Topology(nodes=case.nodes, gpus_per_node=ranks // case.nodes, rails=case.seed % 2 == 1)
        needs = needs_between(old, new, ranks)
        plan = schedule(
            case.rows.removeprefix("planned "), needs, topology, case.layers, EXPERT_BYTES, len(TENSORS), 64
        ).transfers
    job = make_job(old, new, plan, ranks, ranks // case.nodes, EXPERT_BYTES)
    return replace(job, direct=False) if case.rows in ("rows", "planned direct") else job


def config_of(case: Case, ranks: int) -> UpdateStageConfig:
    options = UpdateOptions(link_mib=1, executor="reference")
    if case.staged is not None:
        options.executor = "pipelined"
        options.staging_mib = (case.staged + 0.5) * Layout.of([tensor.nbytes for tensor in TENSORS]).row_bytes / MIB
    return UpdateStageConfig(
        update=options,
        model=ModelSpec(tensors=TENSORS),
        topology=Topology(nodes=case.nodes, gpus_per_node=ranks // case.nodes),
        seed=case.seed,
    )


def relayed(plan: TransferPlan, ranks: int) -> TransferPlan:
    """`plan` with every second network row sent by way of a third rank, where it lands in staging alone."""
    columns: dict[str, list[int]] = {name: [] for name in plan.__dataclass_fields__}
    arriving = set(zip(plan.layer.tolist(), plan.logical_expert.tolist(), plan.dst_rank.tolist(), strict=True))
    for number, row in enumerate(zip(*(getattr(plan, name).tolist() for name in columns), strict=True)):
        value = dict(zip(columns, row, strict=True))
        expert = value["layer"], value["logical_expert"]
        others = [r for r in range(ranks) if r != value["src_rank"] and (*expert, r) not in arriving]
        hops = [value]
        if number % 2 and value["kind"] >= Kind.same_node and others:
            middle = others[number % len(others)]
            arriving.add((*expert, middle))
            hops = [
                value | {"dst_rank": middle, "dst_slot": -1},
                value | {"src_rank": middle, "src_slot": -1, "kind": Kind.relay, "round": 1},
            ]
        for hop in hops:
            for name in columns:
                columns[name].append(hop[name])
    whole = TransferPlan(**{name: np.array(values, dtype=np.int64) for name, values in columns.items()})
    return whole.select(np.lexsort((whole.round, whole.layer)))


def check(case: Case, job: Job, measured: Measured) -> int:
    """Every slot holds its expert, by the generator alone; the bytes are those of the plan. The checksums compared."""
    compared = 0
    for expert_map, found in ((job.old, measured.before), (job.new, measured.after)):
        layer, slot = np.nonzero(expert_map != EMPTY)
        expected = truth(TENSORS, case.seed, layer, expert_map[layer, slot])
        wrong = np.argwhere(found[layer, slot] != expected)
        assert not len(wrong), (
            f"{case} on {job.ranks} ranks: {len(wrong)} of {expected.size} checksums are wrong, the first in layer "
            f"{layer[wrong[0][0]]} slot {slot[wrong[0][0]]} tensor {TENSORS[wrong[0][1]].name}"
        )
        compared += expected.size
    assert measured.received.tolist() == job.received_bytes().tolist(), case
    assert measured.sent.tolist() == job.sent_bytes().tolist(), case
    assert measured.received.sum() == measured.sent.sum()
    if not case.rows.endswith("relay"):
        needed = moved_slots(job.old, job.new, case.experts, job.ranks)
        assert measured.received.sum() == needed * EXPERT_BYTES, case
    if case.staged is None:
        assert measured.event_seconds("layer").shape == (job.ranks, job.layers)
    else:
        assert measured.staging.max() <= case.staged * Layout.of([tensor.nbytes for tensor in TENSORS]).row_bytes
    assert measured.complete
    assert (measured.spans[:, :, 1] >= measured.spans[:, :, 0]).all()
    assert (measured.seconds > 0).all()
    assert measured.link_gb_per_s[0] > 0
    return compared
