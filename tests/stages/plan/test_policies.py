"""Every policy on random maps: complete, possible hop by hop, free of deadlock, and within the bounds."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.direct import direct_transfers
from stages.expert_map import EMPTY, contiguous_map, moved_slots
from stages.needs import needs_between
from stages.plan.bound import lower_bound_seconds
from stages.plan.policies import Scheduled, schedule
from stages.plan.schedule import fabric_width
from stages.plan.traffic import count_traffic, least_cross_node_bytes
from stages.topology import Link, Links, Topology
from stages.transfers import Kind, TransferPlan
from tests.stages.maps import MapPair, map_pairs
from tests.stages.plan.simulate import carry_out, finishes, rows_of

BYTES, TENSORS = 1000, 3
POLICIES = ("direct", "relay")
FAST, EVEN, SLOW = Link(300.0), Link(50.0), Link(20.0)


def topology_of(pair: MapPair, rails: bool = False, within: Link = FAST, node: float | None = None) -> Topology:
    nodes = pair.ranks // pair.gpus_per_node
    return Topology("t", nodes, pair.gpus_per_node, rails=rails, links=Links(within, EVEN, node))


def plan_of(pair: MapPair, policy: str, topology: Topology, group_ops: int = 64) -> Scheduled:
    needs = needs_between(pair.old, pair.new, pair.ranks)
    return schedule(policy, needs, topology, len(pair.old), BYTES, TENSORS, group_ops)


cases = given(
    map_pairs(),
    st.sampled_from(POLICIES),
    st.booleans(),
    st.sampled_from([FAST, EVEN, SLOW]),
    st.sampled_from([None, 60.0]),
)


@cases
@settings(deadline=None, max_examples=200, derandomize=True)
def test_every_need_arrives_once_by_hops_that_have_it(
    pair: MapPair, policy: str, rails: bool, within: Link, node: float | None
) -> None:
    topology = topology_of(pair, rails, within, node)
    found = plan_of(pair, policy, topology)
    plan = found.transfers
    carry_out(plan, pair.old, pair.new, pair.ranks, pair.gpus_per_node)
    assert finishes(plan, pair.ranks)
    network = plan.select(plan.network)
    arrivals = Counter(
        zip(network.layer.tolist(), network.logical_expert.tolist(), network.dst_rank.tolist(), strict=True)
    )
    assert set(arrivals.values()) <= {1}
    traffic = count_traffic(plan, topology, len(pair.old))
    assert traffic.moved_bytes == BYTES * moved_slots(pair.old, pair.new, pair.experts, pair.ranks)
    assert traffic.same_node_bytes + traffic.cross_node_bytes == BYTES * len(network)
    passing = int((network.dst_slot == -1).sum())
    assert traffic.moved_bytes + passing * BYTES == int(network.bytes.sum())
    if policy == "direct":
        assert traffic.relay_bytes == passing == 0


@given(map_pairs(max_nodes=5, max_slots=6), st.booleans(), st.sampled_from([FAST, EVEN, SLOW]))
@settings(deadline=None, max_examples=120, derandomize=True)
def test_relay_crosses_as_little_as_can_be(pair: MapPair, rails: bool, within: Link) -> None:
    """By loops: each expert crosses into each node that needs it and has it in no slot, exactly once."""
    plan = plan_of(pair, "relay", topology_of(pair, rails, within)).transfers
    gpus = pair.gpus_per_node
    expected = Counter()
    for layer, (old, new) in enumerate(zip(pair.old, pair.new, strict=True)):
        by_node = zip(
            old.reshape(-1, old.size // (pair.ranks // gpus)),
            new.reshape(-1, old.size // (pair.ranks // gpus)),
            strict=True,
        )
        for node, (before, after) in enumerate(by_node):
            for expert in set(after.tolist()) - set(before.tolist()) - {EMPTY}:
                expected[layer, expert, node] += 1
    crossing = [row for row in rows_of(plan) if row["src_rank"] // gpus != row["dst_rank"] // gpus]
    assert Counter((r["layer"], r["logical_expert"], r["dst_rank"] // gpus) for r in crossing) == expected
    needs = needs_between(pair.old, pair.new, pair.ranks)
    assert least_cross_node_bytes(needs, topology_of(pair), BYTES) == BYTES * len(expected)
    if rails:
        assert all(row["src_rank"] % gpus == row["dst_rank"] % gpus for row in crossing)


@cases
@settings(deadline=None, max_examples=100, derandomize=True)
def test_rounds_are_narrow_and_few(pair: MapPair, policy: str, rails: bool, within: Link, node: float | None) -> None:
    topology = topology_of(pair, rails, within, node)
    found = plan_of(pair, policy, topology)
    plan = found.transfers.select(found.transfers.network)
    crosses = plan.src_rank // pair.gpus_per_node != plan.dst_rank // pair.gpus_per_node
    degrees = np.zeros(len(pair.old), dtype=np.int64)
    width = fabric_width(topology, TENSORS, 64)
    for end in (plan.src_rank, plan.dst_rank):
        for over, room in ((crosses, 1), (~crosses, width)) if policy == "relay" else ((crosses | ~crosses, 1),):
            at = list(zip(plan.layer[over], plan.round[over], end[over], strict=True))
            assert max(Counter(at).values(), default=0) <= room
            for (layer, _), degree in Counter(zip(plan.layer[over].tolist(), end[over].tolist(), strict=True)).items():
                degrees[layer] = max(degrees[layer], -(-degree // room))
    assert (found.rounds.rounds >= found.rounds.least).all()
    assert (found.rounds.least >= degrees).all()
    if policy == "direct":
        assert found.rounds.rounds.tolist() == degrees.tolist()


def test_direct_is_the_published_plan_but_for_its_rounds() -> None:
    rng = np.random.default_rng(3)
    old, new = (rng.permuted(np.tile(np.arange(32), (4, 1)) % 24, axis=1) for _ in range(2))
    pair = MapPair(old, new, 24, 8, 4)
    found = plan_of(pair, "direct", topology_of(pair)).transfers
    published = direct_transfers(old, new, 8, 4, BYTES)
    order = np.lexsort((found.dst_slot, found.kind, found.logical_expert, found.layer))
    for name in TransferPlan.__dataclass_fields__:
        if name != "round":
            assert np.array_equal(getattr(found, name)[order], getattr(published, name))


def test_many_that_need_one_expert_form_a_tree() -> None:
    """One GPU of node 0 holds expert 0, all eight of node 1 want it: it crosses once, and no GPU passes it on more
    often than a binomial tree does."""
    old = np.arange(16)[None, :]
    new = np.where(np.arange(16) >= 8, 0, old)
    pair = MapPair(old, np.concatenate([new, np.arange(16)[None, :]], axis=1).reshape(1, -1), 16, 16, 8)
    old = np.concatenate([old.reshape(16, 1), np.full((16, 1), EMPTY)], axis=1).reshape(1, -1)
    new = np.stack([np.arange(16), np.where(np.arange(16) >= 8, 0, EMPTY)], axis=1).reshape(1, -1)
    pair = MapPair(old, new, 16, 16, 8)
    found = plan_of(pair, "relay", topology_of(pair, within=EVEN))
    plan = found.transfers.select(found.transfers.network)
    assert plan.kind.tolist().count(Kind.cross_node) == 1
    assert plan.kind.tolist().count(Kind.relay) == 7
    assert found.rounds.rounds.tolist() == [4]  # the crossing, then 1, 2 and 4 deliveries at a time
    assert found.rounds.least.tolist() == [4]


def test_rails_may_lead_through_a_gpu_that_has_no_slot_for_it() -> None:
    """GPU 0 of node 0 holds expert 0, GPU 1 of node 1 wants it: along the rail it passes GPU 0 of node 1."""
    pair = MapPair(np.array([[0, 1, 2, 3]]), np.array([[0, 1, 2, 0]]), 4, 4, 2)
    rows = rows_of(plan_of(pair, "relay", topology_of(pair, rails=True)).transfers)
    assert [(r["kind"], r["src_rank"], r["src_slot"], r["dst_rank"], r["dst_slot"], r["round"]) for r in rows] == [
        (Kind.cross_node, 0, 0, 2, -1, 0),
        (Kind.relay, 2, -1, 3, 3, 1),
    ]
    (row,) = rows_of(plan_of(pair, "relay", topology_of(pair)).transfers)
    assert (row["kind"], row["src_rank"], row["dst_rank"], row["dst_slot"]) == (Kind.cross_node, 0, 3, 3)


@pytest.mark.parametrize(
    ("tensors", "group_ops", "width"), [(3, 64, 6), (6, 64, 4), (40, 64, 1), (3, 1000, 6), (1, 8, 3)]
)
def test_groups_are_bounded(tensors: int, group_ops: int, width: int) -> None:
    assert fabric_width(Topology(links=Links(FAST, EVEN)), tensors, group_ops) == width
    if width > 1:
        assert 2 * tensors * (width + 1) <= group_ops
    assert fabric_width(Topology(nodes=1, links=Links(FAST, EVEN)), tensors, group_ops) == 1


@pytest.mark.parametrize("policy", POLICIES)
def test_nothing_to_do(policy: str) -> None:
    for old in (contiguous_map(2, 4, 8), np.full((2, 8), EMPTY), np.zeros((0, 8), dtype=np.int64)):
        pair = MapPair(old, old, 4, 4, 2)
        assert len(plan_of(pair, policy, topology_of(pair)).transfers) == 0


@given(map_pairs(max_slots=6), st.booleans(), st.sampled_from([FAST, EVEN, SLOW]), st.sampled_from([None, 60.0]))
@settings(deadline=None, max_examples=80, derandomize=True)
def test_no_link_of_any_plan_is_faster_than_the_bound(
    pair: MapPair, rails: bool, within: Link, node: float | None
) -> None:
    from stages.cost import busiest_link, predict_reference

    topology = topology_of(pair, rails, within, node)
    needs = needs_between(pair.old, pair.new, pair.ranks)
    bound = lower_bound_seconds(needs, topology, BYTES)
    for policy in POLICIES:
        plan = plan_of(pair, policy, topology).transfers
        _, busy = busiest_link(plan, topology)
        predicted = predict_reference(plan, topology, len(pair.old), 1, one_group=policy == "direct").seconds
        assert bound <= busy * 2 * (1 + 1e-9)  # a rank may use both of its links at once
        assert bound <= predicted * (1 + 1e-9)
        assert busy <= predicted * (1 + 1e-9)
    assert (bound > 0) == bool(len(needs.item))
