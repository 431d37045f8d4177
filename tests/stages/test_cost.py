"""Predictions against sums made by hand, and the names of links."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.cost import busiest_link, link_seconds, predict_pipelined, predict_reference
from stages.needs import needs_between
from stages.plan.policies import schedule
from stages.prediction import predict
from stages.topology import Device, Link, Links, Topology
from stages.transfers import Kind, TransferPlan
from tests.stages.maps import MapPair, map_pairs

GB = 10**9
INSTANT = Device(1e12, 1e12)


def topology(**values: object) -> Topology:
    """2 x 2 GPUs; 10 GB/s inside nodes, 1 GB/s between them."""
    return Topology("t", 2, 2, **{"links": Links(Link(10.0), Link(1.0)), "device": INSTANT, **values})


def hops(*rows: tuple[int, int, int, int], kind: int = Kind.same_node) -> TransferPlan:
    """(layer, round, from, to) of one GB each."""
    layer, number, src, dst = (np.array(column, dtype=np.int64) for column in zip(*rows, strict=True))
    n = len(rows)
    return TransferPlan(
        layer=layer, logical_expert=np.arange(n), kind=np.full(n, kind), src_rank=src, src_slot=src, dst_rank=dst,
        dst_slot=dst, round=number, bytes=np.full(n, GB),
    )  # fmt: skip


def seconds(plan: TransferPlan, where: Topology, *, one_group: bool = False, tensors: int = 1) -> list[float]:
    layers = int(plan.layer.max()) + 1
    found = predict_reference(plan, where, layers, tensors, one_group=one_group)
    assert found.seconds == pytest.approx(found.parts.sum())
    return found.parts.tolist()


def test_a_hop_takes_the_time_of_its_link_and_its_messages() -> None:
    slow = topology(links=Links(Link(10.0, 1e5), Link(1.0, 2e5)))
    assert seconds(hops((0, 0, 0, 1)), slow, tensors=3) == pytest.approx([0.1 + 0.3])
    assert seconds(hops((0, 0, 0, 2)), slow, tensors=3) == pytest.approx([1.0 + 0.6])


def test_directions_and_links_go_at_once_and_hops_of_one_direction_share() -> None:
    both = hops((0, 0, 0, 2), (0, 0, 2, 0), (0, 0, 0, 1))
    assert seconds(both, topology(), one_group=True) == pytest.approx([1.0])
    shared = hops((0, 0, 0, 2), (0, 0, 0, 3))
    assert seconds(shared, topology(), one_group=True) == pytest.approx([2.0])


def test_a_round_begins_when_both_ends_are_there() -> None:
    """0 sends to 2 for a second; 1 to 0 for a tenth; in the next round 1 waits for 0, which is still sending."""
    plan = hops((0, 0, 0, 2), (0, 0, 1, 3), (0, 1, 1, 0))
    assert seconds(plan, topology()) == pytest.approx([1.1])
    assert seconds(plan, topology(), one_group=True) == pytest.approx([1.0])


def test_layers_follow_each_other_on_each_rank_and_copies_count() -> None:
    plan = hops((0, 0, 0, 2), (1, 0, 1, 3))
    assert seconds(plan, topology()) == pytest.approx([1.0, 0.0])  # other ranks: both at once
    plan = hops((0, 0, 0, 2), (1, 0, 2, 3))
    assert seconds(plan, topology(device=Device(2.0, 1e12, layer_us=1e5))) == pytest.approx([1.6, 0.7])
    local = hops((0, 0, 1, 1), kind=Kind.same_gpu)
    assert seconds(local, topology(device=Device(2.0, 1e12))) == pytest.approx([1.0])
    rider = hops((0, 0, 1, 1), kind=Kind.free_rider)
    assert seconds(rider, topology(device=Device(2.0, 1e12))) == pytest.approx([0.5])


def test_a_host_queues_layers_ahead_of_its_gpu() -> None:
    """A second a layer on the network; who sends queues 1 + tensors, who receives as much, and a copy of each tensor."""
    plan = hops((0, 0, 0, 2), (1, 0, 0, 3))
    ahead = topology(device=Device(1e12, 1e12, layer_us=1e5, layer_message_us=1e5))
    assert seconds(plan, ahead) == pytest.approx([0.3 + 1.0, 1.0])
    behind = topology(device=Device(1e12, 1e12, layer_us=1e5, layer_message_us=1e6))
    assert seconds(plan, behind) == pytest.approx([2.1 + 1.0, 2.1 + 1.0])
    assert predict_reference(plan, behind, 2, 3, one_group=True).parts == pytest.approx([4.1 + 3.0, 4.1 + 3.0])
    local = hops((0, 0, 1, 1), kind=Kind.same_gpu)
    assert seconds(local, topology(device=Device(1e12, 1e12, layer_message_us=1e5))) == pytest.approx([0.2 + 0.1])


def test_many_messages_of_a_layer_share_less_than_the_link() -> None:
    plan = hops((0, 0, 0, 2))
    device = Device(1e12, 1e12, layer_message_us=0.0, layer_share=0.5)
    assert seconds(plan, topology(device=device)) == pytest.approx([2.0])
    assert seconds(plan, topology(device=replace(device, layer_message_us=None))) == pytest.approx([1.0])


def test_a_layer_of_other_gpus_takes_its_time_once_it_is_queued() -> None:
    """A tenth of a second each on other GPUs, at once on the GPUs alone; but the second is queued after 5 s."""
    device = Device(1e12, 1e12, layer_us=2.5e6, layer_message_us=0.0)
    assert seconds(hops((0, 0, 0, 1), (1, 0, 2, 3)), topology(device=device)) == pytest.approx([2.6, 2.5])


@given(map_pairs(max_slots=6), st.sampled_from(["direct", "relay"]), st.sampled_from([None, 0.0, 3.0]))
@settings(deadline=None, max_examples=60, derandomize=True)
def test_more_bytes_take_no_less_and_faster_links_and_devices_no_more(
    pair: MapPair, policy: str, message_us: float | None
) -> None:
    tensors = [2 << 20] * 3
    where = Topology(
        "t", pair.ranks // pair.gpus_per_node, pair.gpus_per_node, links=Links(Link(300.0, 5.0), Link(50.0, 20.0), 60.0),
        device=Device(500.0, 300.0, 10.0, 10.0, message_us, message_us),
    )  # fmt: skip
    layers, slots = pair.old.shape
    plan = schedule(policy, needs_between(pair.old, pair.new, pair.ranks), where, layers, sum(tensors), 3, 64).transfers
    links, device = where.links, where.device
    faster = [
        replace(where, links=replace(links, within_node=Link(510.0, 5.0))),
        replace(where, links=replace(links, between_nodes=Link(85.0, 20.0))),
        replace(where, links=replace(links, between_nodes=Link(50.0, 10.0))),
        replace(where, links=replace(links, node_gb_per_s=120.0)),
        replace(where, device=replace(device, copy_gb_per_s=1000.0)),
        replace(where, device=replace(device, checksum_gb_per_s=600.0)),
        replace(where, device=replace(device, layer_us=5.0, batch_us=5.0)),
    ]
    for executor in ("reference", "pipelined"):

        def needed(plan: TransferPlan, where: Topology, executor: str = executor) -> float:
            found = predict(
                plan, layers, slots, where, tensors, executor=executor, one_group=policy == "direct", staging_mib=64.0
            )
            assert (found.parts >= 0).all()
            assert found.parts.sum() == pytest.approx(found.seconds)
            return found.seconds

        found = needed(plan, where)
        assert found * (1 + 1e-9) >= busiest_link(plan, where)[1]
        assert needed(replace(plan, bytes=plan.bytes * 2), where) >= found * (1 - 1e-9)
        for other in faster:
            assert needed(plan, other) <= found * (1 + 1e-9)


def test_gpus_of_a_node_share_its_link() -> None:
    plan = hops((0, 0, 0, 2), (0, 0, 1, 3))
    assert seconds(plan, topology()) == pytest.approx([1.0])
    assert seconds(plan, topology(links=Links(Link(10.0), Link(1.0), 0.5))) == pytest.approx([4.0])


def test_small_groups_reach_a_fraction_of_the_link() -> None:
    curve = [[1e8, 0.25], [1e9, 0.5], [2e9, 1.0]]
    where = topology(links=Links(Link(10.0, curve=curve), Link(1.0)))
    assert seconds(hops((0, 0, 0, 1)), where) == pytest.approx([0.2])
    assert seconds(hops((0, 0, 0, 1), (0, 0, 0, 1)), where, one_group=True) == pytest.approx([0.2])
    assert seconds(hops((0, 0, 0, 1), (0, 1, 0, 1)), where) == pytest.approx([0.4])
    link = where.links.within_node
    sizes = np.array([0, 1, 1e8, 5.5e8, 1e9, 2e9, 12e9])
    assert link.seconds(sizes, 0) == pytest.approx([0, 0.04, 0.04, 0.12, 0.2, 0.2, 1.2])


def pipelined(
    plan: TransferPlan, batch: list[int], where: Topology, tensors: int = 1, *, phase: list[int] | None = None,
    after: list[int] | None = None, checked: bool = True,
) -> list[float]:  # fmt: skip
    """Seconds of each batch; those of `after`: -1 for all, if not given."""
    waits = [-1] * (max(batch, default=-1) + 1) if after is None else after
    of, hop, waited = (np.array(column, dtype=np.int64) for column in (batch, phase or [0] * len(batch), waits))
    found = predict_pipelined(plan, of, hop, waited, where, tensors, checked=checked)
    assert found.seconds == pytest.approx(found.parts.sum())
    return found.parts.tolist()


def test_batches_overlap_what_is_done_with_the_one_before() -> None:
    """Packing 0.1 s, hashing 0.5 s, copying into slots 0.1 s, 0.1 s for each batch."""
    where = topology(device=Device(10.0, 2.0, batch_us=1e5))
    plan = hops((0, 0, 0, 2), (1, 0, 0, 2))
    assert pipelined(plan, [0, 0], where) == pytest.approx([2.1 + 1.2])
    assert pipelined(plan, [0, 1], where) == pytest.approx([1.1 + 0.6, 1.1])
    assert pipelined(plan, [0, 1], where, after=[-1, 0]) == pytest.approx([1.7, 1.7])
    queued = topology(device=Device(10.0, 2.0, batch_us=1e5, batch_message_us=2e5))
    assert pipelined(plan, [0, 1], queued, 3) == pytest.approx([1.7 + 0.6, 1.7])
    assert pipelined(plan, [0, 0], where, checked=False) == pytest.approx([2.1 + 0.2])
    assert pipelined(plan.select(np.zeros(2, dtype=np.bool_)), [], topology()) == []


def test_a_host_has_two_batches_in_hand_and_a_gpu_what_staging_holds() -> None:
    """Hashing takes three seconds, the network one."""
    plan = hops((0, 0, 0, 2), (1, 0, 0, 2), (2, 0, 0, 2))
    host = topology(device=Device(1e12, 1 / 3))
    assert pipelined(plan, [0, 1, 2], host) == pytest.approx([4.0, 3.0, 3.0])
    slow = topology(device=Device(1e12, 1 / 3), links=Links(Link(10.0), Link(0.25)))
    gpu = replace(slow, device=replace(slow.device, batch_message_us=0.0))
    assert pipelined(plan, [0, 1, 2], slow) == pytest.approx([7.0, 4.0, 4.0])
    assert pipelined(plan, [0, 1, 2], gpu, after=[-1, 0, 1]) == pytest.approx([7.0, 7.0, 7.0])


def test_what_is_forwarded_goes_out_with_the_next_batch() -> None:
    """An expert a second crosses from 0 to 2, which passes it on to 3 in a tenth."""
    plan = hops((0, 0, 0, 2), (0, 1, 2, 3), (1, 0, 0, 2), (1, 1, 2, 3))
    batch, phase = [0, 0, 1, 1], [0, 1, 0, 1]
    assert pipelined(plan, batch, topology(), phase=phase) == pytest.approx([2.0, 0.1])
    assert pipelined(plan, batch, topology(), phase=phase, after=[-1, 0]) == pytest.approx([1.1, 1.1])


def test_nothing_takes_no_time() -> None:
    plan = hops((0, 0, 0, 2)).select(np.zeros(1, dtype=np.bool_))
    assert predict_reference(plan, topology(), 3, 1, one_group=True).parts.tolist() == [0, 0, 0]
    assert busiest_link(plan, topology()) == ("", 0.0)


def test_links_have_names() -> None:
    assert busiest_link(hops((0, 0, 0, 1)), topology()) == ("GPU 0 out (fabric)", pytest.approx(0.1))
    assert busiest_link(hops((0, 0, 1, 2), (0, 0, 1, 3)), topology()) == ("GPU 1 out (network)", pytest.approx(2.0))
    narrow = topology(links=Links(Link(10.0), Link(1.0), 0.5))
    assert busiest_link(hops((0, 0, 0, 3), (0, 0, 2, 1), (0, 0, 2, 0)), narrow) == ("node 1 out", pytest.approx(4.0))
    found = link_seconds(hops((0, 0, 0, 3)), topology())
    assert found["network in"].tolist() == [0, 0, 0, 1]
    assert found["node in"].tolist() == [0, 0.5]
