from __future__ import annotations

from collections import Counter
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings

from stages.direct import direct_transfers
from stages.errors import BadInput
from stages.expert_map import EMPTY, contiguous_map, moved_slots
from stages.transfers import Kind, TransferPlan
from tests.stages.direct_reference import GoldenCase, golden_cases, ops, received, reference_rows, split
from tests.stages.maps import MapPair, map_pairs

GOLDEN = pytest.mark.parametrize(
    "case", golden_cases(), ids=lambda c: f"{c.nodes}x{c.gpus_per_node}x{c.slots_per_rank}"
)


def rows(plan: TransferPlan) -> list[tuple[int, ...]]:
    columns = ("layer", "logical_expert", "kind", "src_rank", "src_slot", "dst_rank", "dst_slot")
    return list(zip(*(getattr(plan, name).tolist() for name in columns), strict=True))


def plan_of(pair: MapPair) -> TransferPlan:
    return direct_transfers(pair.old, pair.new, pair.ranks, pair.gpus_per_node, 10)


@GOLDEN
def test_golden_cases_and_sources(case: GoldenCase) -> None:
    plan = direct_transfers(np.array([case.old]), np.array([case.new]), case.world_size, case.gpus_per_node, 1)
    for rank, expected in enumerate(case.ranks):
        assert received(plan, rank, case.slots_per_rank) == expected["recv"]


@GOLDEN
def test_golden_op_order(case: GoldenCase) -> None:
    plan = direct_transfers(np.array([case.old]), np.array([case.new]), case.world_size, case.gpus_per_node, 1)
    for rank, expected in enumerate(case.ranks):
        assert ops(plan, rank) == expected["ops"]


def test_the_golden_file_covers_every_case() -> None:
    assert len(golden_cases()) == 18
    seen = Counter(slot["case"] for case in golden_cases() for rank in case.ranks for slot in rank["recv"])
    assert set(seen) == {"unchanged", "same-gpu", "free-rider", "same-node", "cross-node"}


def test_golden_cases_as_layers_of_one_plan() -> None:
    """Layers do not see each other: cases of one shape planned at once are planned as one by one."""
    alike: dict[tuple[int, int, int], list[GoldenCase]] = {}
    for case in golden_cases():
        alike.setdefault((case.world_size, case.gpus_per_node, case.slots_per_rank), []).append(case)
    for (ranks, gpus, slots_per_rank), cases in alike.items():
        # Each case and its way back, so that every shape has at least two layers.
        both = [(c.old, c.new) for c in cases] + [(c.new, c.new) for c in cases]
        old, new = (np.array([maps[side] for maps in both]) for side in (0, 1))
        plan = direct_transfers(old, new, ranks, gpus, 1)
        for layer, case in enumerate(cases):
            part = plan.select(plan.layer == layer)
            assert [received(part, r, slots_per_rank) for r in range(ranks)] == [r["recv"] for r in case.ranks]
        assert plan.layer.max(initial=0) < len(cases)


@given(map_pairs())
@settings(deadline=None, max_examples=120, derandomize=True)
def test_same_rows_as_the_loops(pair: MapPair) -> None:
    assert rows(plan_of(pair)) == reference_rows(pair.old, pair.new, pair.ranks, pair.gpus_per_node)


@given(map_pairs(max_nodes=6, max_gpus=8, max_slots=1))
@settings(deadline=None, max_examples=60, derandomize=True)
def test_same_rows_as_the_loops_with_one_slot_a_rank(pair: MapPair) -> None:
    assert rows(plan_of(pair)) == reference_rows(pair.old, pair.new, pair.ranks, pair.gpus_per_node)


@given(map_pairs())
@settings(deadline=None, max_examples=120, derandomize=True)
def test_one_sender_that_holds_and_one_receiver_that_lacks(pair: MapPair) -> None:
    plan = plan_of(pair)
    network = plan.select(plan.network)
    old = pair.old.reshape(pair.old.shape[0], pair.ranks, -1)
    expert = network.logical_expert[:, None]
    assert (old[network.layer, network.src_rank] == expert).any(axis=1).all()
    assert not (old[network.layer, network.dst_rank] == expert).any(axis=1).any()
    assert (pair.old[network.layer, network.src_slot] == network.logical_expert).all()
    received_by = list(zip(network.layer, network.logical_expert, network.dst_rank, strict=True))
    assert len(set(received_by)) == len(received_by)
    assert len(received_by) == moved_slots(pair.old, pair.new, pair.experts, pair.ranks)


@given(map_pairs())
@settings(deadline=None, max_examples=120, derandomize=True)
def test_applying_the_rows_gives_the_new_map(pair: MapPair) -> None:
    plan = plan_of(pair)
    reached = pair.old.copy()
    rides = plan.kind == Kind.free_rider
    for part, before in ((plan.select(~rides), pair.old), (plan.select(rides), reached)):
        reached[part.layer, part.dst_slot] = before[part.layer, part.src_slot]
    filled = pair.new != EMPTY
    assert (reached[filled] == pair.new[filled]).all()
    assert filled[plan.layer, plan.dst_slot].all()
    assert len(plan) == int((filled & (pair.old != pair.new)).sum())


@given(map_pairs())
@settings(deadline=None, max_examples=30, derandomize=True)
def test_nothing_moves_when_the_maps_agree(pair: MapPair) -> None:
    assert len(direct_transfers(pair.new, pair.new, pair.ranks, pair.gpus_per_node, 10)) == 0


def test_every_row_carries_its_bytes_in_round_0() -> None:
    plan = direct_transfers(np.array([[0, 1]]), np.array([[1, 0]]), 2, 2, 123)
    assert plan.bytes.tolist() == [123, 123]
    assert plan.round.tolist() == [0, 0]
    assert all(getattr(plan, field.name).dtype == np.int64 for field in fields(plan))


def test_a_needing_rank_whose_node_holds_the_expert_never_asks_another_node() -> None:
    # Ranks 0-1 and 2-3 are nodes; rank 2 and rank 0 hold expert 0, ranks 1 and 3 need it.
    plan = direct_transfers(np.array([[0, 1, 0, 2]]), np.array([[1, 0, 2, 0]]), 4, 2, 1)
    zero = plan.select(plan.logical_expert == 0)
    assert list(zip(zero.src_rank.tolist(), zero.dst_rank.tolist(), strict=True)) == [(0, 1), (2, 3)]
    assert set(zero.kind.tolist()) == {Kind.same_node}


@pytest.mark.parametrize(
    ("items", "chunks", "expected"), [(5, 2, [3, 2]), (2, 3, [1, 1, 0]), (0, 2, [0, 0]), (6, 3, [2, 2, 2])]
)
def test_needing_ranks_are_split_with_the_longer_chunks_first(items: int, chunks: int, expected: list[int]) -> None:
    assert [len(chunk) for chunk in split(list(range(items)), chunks)] == expected
    # One node of one GPU each: `chunks` sources of expert 0, then `items` ranks that need it.
    old = np.array([[0] * chunks + [1] * (items + 1)])
    new = np.array([[0] * chunks + [0] * items + [1]])
    plan = direct_transfers(old, new, chunks + items + 1, 1, 1)
    assert np.bincount(plan.src_rank, minlength=chunks).tolist() == expected


def test_an_expert_without_a_holder_is_named_with_its_layer() -> None:
    old, new = contiguous_map(3, 4, 4), contiguous_map(3, 4, 4)
    old[1], new[1] = [0, 1, 2, -1], [3, 1, 2, 0]
    with pytest.raises(BadInput, match=r"layer 1: logical expert 3 is needed in slot 0 \(rank 0\), and no slot of the"):
        direct_transfers(old, new, 4, 2, 1)
    with pytest.raises(BadInput, match=r"layer 7: logical expert 3"):
        direct_transfers(old, new, 4, 2, 1, layer_ids=[3, 7, 9])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ([[0, 1]], [[0, 1, 2, 3]], r"shape \[1, 2\], the new one \[1, 4\]"),
        ([[0, 1, 2]], [[2, 1, 0]], "3 slots do not divide evenly over 2 ranks"),
        ([[0, -2]], [[0, 0]], "below 0"),
    ],
)
def test_maps_that_cannot_be(old: list[list[int]], new: list[list[int]], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        direct_transfers(np.array(old), np.array(new), 2, 1, 1)


@pytest.mark.parametrize("layers", [0, 2])
def test_no_layers_or_only_empty_slots_give_no_rows(layers: int) -> None:
    empty = np.full((layers, 4), EMPTY)
    assert len(direct_transfers(empty, empty, 2, 2, 1)) == 0
    assert len(direct_transfers(contiguous_map(layers, 4, 4), empty, 2, 2, 1)) == 0
