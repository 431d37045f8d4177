"""Batches of a plan: played through on symbolic slots, every read finds old content and every slot ends as planned."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.batches import Batches, cut, parked, reached
from stages.direct import direct_transfers
from stages.errors import BadInput
from stages.expert_map import EMPTY, ExpertMap, contiguous_map
from stages.staging import Layout, budget
from stages.transfers import Kind, TransferPlan
from tests.stages.maps import MapPair, map_pairs
from tests.stages.update.cases import relayed


def play(plan: TransferPlan, old: ExpertMap, ranks: int, batches: Batches, rows: int) -> ExpertMap:
    """The map that the batches lead to; asserts every rule on the way."""
    slots = old.copy()
    staging = np.full((ranks, rows), EMPTY)
    busy_until = np.full((ranks, rows), -1)
    wanted = set(zip(plan.layer.tolist(), plan.logical_expert.tolist(), strict=True))
    staged_now: dict[tuple[int, int, int], int] = {}
    for batch in range(len(batches)):
        staged = np.flatnonzero(batches.stage == batch)
        for n in staged[np.argsort(batches.phase[staged], kind="stable")]:
            key = (int(plan.layer[n]), int(plan.logical_expert[n]))
            if batches.phase[n] == 0:
                assert slots[plan.layer[n], plan.src_slot[n]] == key[1], "a send reads what is not there any more"
            else:
                parent = staged_now[(*key, int(plan.src_rank[n]))]
                assert batches.stage[parent] == batch
                assert batches.phase[parent] == batches.phase[n] - 1
            at = plan.dst_rank[n], batches.row[n]
            assert busy_until[at] <= batches.after[batch], "staging is written before it has been committed"
            busy_until[at] = batches.commit[n]
            staging[at] = key[1]
            staged_now[(*key, int(plan.dst_rank[n]))] = int(n)
        before = slots.copy()
        for n in np.flatnonzero((batches.commit == batch) & (plan.dst_slot >= 0)):
            layer, expert = plan.layer[n], plan.logical_expert[n]
            if plan.kind[n] == Kind.same_gpu:
                value = before[layer, plan.src_slot[n]]
            else:
                arrival = staged_now[(int(layer), int(expert), int(plan.dst_rank[n]))]
                assert batches.commit[arrival] == batch
                value = staging[plan.dst_rank[n], batches.row[arrival]]
            assert value == expert, "a slot is filled with another expert"
            slots[layer, plan.dst_slot[n]] = value
        parked = {
            (int(plan.layer[n]), int(plan.logical_expert[n]))
            for n in np.flatnonzero((batches.stage <= batch) & (batches.commit > batch) & (batches.stage >= 0))
        }
        held = {(layer, expert) for layer, row in enumerate(slots.tolist()) for expert in row}
        assert wanted <= held | parked, "an expert is held nowhere"
        check_state(plan, old, batches, batch + 1, slots, staging)
    return slots


def check_state(
    plan: TransferPlan, old: ExpertMap, batches: Batches, committed: int, slots: ExpertMap, staging: np.ndarray
) -> None:
    """`reached` and `parked` say what was found by playing, and a row of every rank is free."""
    assert np.array_equal(reached(plan, batches, old, committed), slots)
    waiting = parked(batches, committed)
    at = plan.dst_rank[waiting], batches.row[waiting]
    assert np.array_equal(staging[at], plan.logical_expert[waiting])
    assert len(set(zip(*(column.tolist() for column in at), strict=True))) == len(waiting)
    assert np.bincount(at[0], minlength=1).max(initial=0) < staging.shape[1], (
        "a rank has parked experts in all its rows"
    )


def check(plan: TransferPlan, maps: MapPair, rows: int, at_once: int, gpus_per_node: int | None = None) -> Batches:
    layers, slots = maps.old.shape
    batches = cut(plan, layers, slots, maps.ranks, rows=rows, at_once=at_once, gpus_per_node=gpus_per_node)
    network = plan.network
    assert (batches.stage[network] >= 0).all()
    assert (batches.stage[~network] == -1).all()
    assert (batches.commit >= batches.stage).all()
    assert len(plan) == 0 or int(batches.commit.max()) < len(batches)
    received = np.zeros((max(1, len(batches)), maps.ranks), dtype=int)
    np.add.at(received, (batches.stage[network], plan.dst_rank[network]), 1)
    assert received.max(initial=0) <= at_once
    reached = play(plan, maps.old, maps.ranks, batches, rows)
    assert np.array_equal(reached[maps.new != EMPTY], maps.new[maps.new != EMPTY])
    return batches


@settings(deadline=None, max_examples=150, derandomize=True)
@given(map_pairs(max_slots=6), st.integers(2, 9), st.booleans())
def test_every_read_finds_old_content_and_every_slot_is_filled(maps: MapPair, rows: int, relays: bool) -> None:
    plan = direct_transfers(maps.old, maps.new, maps.ranks, maps.gpus_per_node, 1)
    if relays:
        plan = relayed(plan, maps.ranks)
    for at_once in {1, max(1, rows // 4), max(1, rows // 2), rows}:
        for gpus_per_node in (None, maps.gpus_per_node):
            check(plan, maps, rows, at_once, gpus_per_node)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    st.integers(0, 10**6), st.integers(2, 4), st.integers(1, 3), st.integers(1, 5), st.integers(5, 12), st.booleans()
)
def test_layers_that_are_mixed_fit_as_well(
    seed: int, nodes: int, gpus_per_node: int, per_rank: int, rows: int, relays: bool
) -> None:
    """Permutations, which need most room: every expert is held once, and many cycles are open at once."""
    ranks = nodes * gpus_per_node
    rng = np.random.default_rng(seed)
    old, new = (rng.permuted(contiguous_map(12, ranks * per_rank, ranks * per_rank), axis=1) for _ in range(2))
    plan = direct_transfers(old, new, ranks, gpus_per_node, 1)
    if relays:
        plan = relayed(plan, ranks)
    for at_once in (1, rows // 4, rows // 3, rows):
        check(plan, MapPair(old, new, ranks * per_rank, ranks, gpus_per_node), rows, max(1, at_once), gpus_per_node)


def test_no_rank_holds_up_the_others_with_many_crossings_at_once() -> None:
    """In each layer one rank of either node trades all that it holds with the other node; the rest stays on its own."""
    ranks, per_rank, layers, gpus = 8, 6, 16, 4
    old = contiguous_map(layers, ranks * per_rank, ranks * per_rank)
    new = old.copy().reshape(layers, ranks, per_rank)
    for layer in range(layers):
        pair = [layer % gpus, gpus + layer % gpus]
        new[layer, pair] = new[layer, pair[::-1]]
        for node in range(2):
            rest = [rank for rank in range(node * gpus, (node + 1) * gpus) if rank not in pair]
            new[layer, rest] = new[layer, np.roll(rest, 1)]
    maps = MapPair(old, new.reshape(layers, -1), ranks * per_rank, ranks, gpus)
    plan = direct_transfers(maps.old, maps.new, ranks, gpus, 1)
    crosses = plan.network & (plan.src_rank // gpus != plan.dst_rank // gpus)
    busiest = {}
    for gpus_per_node in (None, gpus):
        batches = check(plan, maps, 24, 6, gpus_per_node)
        crossings = np.zeros((len(batches), ranks), dtype=int)
        np.add.at(crossings, (batches.stage[crosses], plan.dst_rank[crosses]), 1)
        busiest[gpus_per_node] = int(crossings.max(axis=1).sum())
    least = per_rank * layers // gpus
    assert busiest[None] == 4 * least
    assert busiest[gpus] <= 1.25 * least


@pytest.mark.parametrize("tensors", [(4 << 20, 2 << 20), (4 << 20, 1 << 10)], ids=["large", "packed"])
def test_a_rank_that_all_want_experts_of_sends_few_in_a_batch(tensors: tuple[int, ...]) -> None:
    ranks, per_rank = 8, 32
    old = np.arange(ranks * per_rank)[None] % per_rank + np.repeat(np.arange(ranks) > 0, per_rank) * per_rank
    new = np.tile(np.arange(per_rank), (1, ranks))  # of which rank 0 alone has any
    plan = direct_transfers(old, new, ranks, ranks, sum(tensors))
    spent = budget(Layout.of(tensors), 64, packs=True, most=per_rank)
    batches = cut(
        plan, 1, ranks * per_rank, ranks, rows=spent.rows, at_once=spent.at_once, sends_at_once=spent.sends_at_once
    )
    sent = np.bincount(batches.stage[plan.network & (plan.src_rank == 0)])
    assert len(plan.select(plan.network)) == sent.sum() == (ranks - 1) * per_rank
    assert sent.max() <= 2 * spent.at_once < (ranks - 1) * spent.at_once


@pytest.mark.parametrize("length", [2, 3, 17])
@pytest.mark.parametrize("per_rank", [1, 4])
def test_a_cycle_of_any_length_fits_two_experts(length: int, per_rank: int) -> None:
    """Each slot gets the expert of the next one, none is held twice: the hardest case there is."""
    ranks = -(-length // per_rank)
    old = contiguous_map(2, ranks * per_rank, ranks * per_rank)
    new = old.copy()
    new[:, :length] = np.roll(old[:, :length], 1, axis=1)
    plan = direct_transfers(old, new, ranks, ranks, 1)
    batches = check(plan, MapPair(old, new, ranks * per_rank, ranks, ranks), rows=2, at_once=1)
    network = plan.network
    if ranks > 1 and per_rank == 1:
        assert (batches.commit > batches.stage)[network].sum() <= 2 * ranks


def test_what_fits_at_once_goes_in_one_batch_and_waits_for_nothing() -> None:
    old = np.array([[0, 1, 2, 3]])
    new = np.array([[2, 3, 0, 1]])
    plan = direct_transfers(old, new, 2, 2, 1)
    batches = cut(plan, 1, 4, 2, rows=4, at_once=2)
    assert len(batches) == 1
    assert batches.stage.tolist() == batches.commit.tolist() == [0] * 4
    assert batches.after.tolist() == [-1]
    assert sorted(batches.row.tolist()) == [0, 0, 1, 1]


def test_the_next_batch_lands_beside_the_one_that_is_being_committed() -> None:
    old, new = contiguous_map(4, 4, 4), np.tile([2, 3, 0, 1], (4, 1))
    plan = direct_transfers(old, new, 2, 2, 1)
    batches = cut(plan, 4, 4, 2, rows=4, at_once=2)
    assert batches.after.tolist() == [-1, -1, 0, 1]
    rows = [sorted(set(batches.row[batches.stage == b].tolist())) for b in range(4)]
    assert rows == [[0, 1], [2, 3], [0, 1], [2, 3]]


def test_what_one_rank_sends_at_once_is_bounded() -> None:
    old, new = np.array([[0, 1, 2, 3]]), np.array([[0, 1, 0, 1]])
    plan = direct_transfers(old, new, 2, 2, 1)
    assert len(cut(plan, 1, 4, 2, rows=4, at_once=2)) == 1
    assert len(cut(plan, 1, 4, 2, rows=4, at_once=2, sends_at_once=1)) == 2


def test_nothing_is_reached_before_the_first_batch_and_nothing_parked_after_the_last() -> None:
    old, new = np.array([[0, 1, 2, 3]]), np.array([[2, 3, 0, 1]])
    plan = direct_transfers(old, new, 2, 2, 1)
    batches = cut(plan, 1, 4, 2, rows=2, at_once=1)
    assert np.array_equal(reached(plan, batches, old, 0), old)
    assert np.array_equal(reached(plan, batches, old, len(batches)), new)
    assert [len(parked(batches, k)) for k in (0, len(batches))] == [0, 0]


def test_another_way_to_cut_has_another_digest() -> None:
    plan = direct_transfers(np.array([[0, 1, 2, 3]]), np.array([[2, 3, 0, 1]]), 2, 2, 1)
    found = {cut(plan, 1, 4, 2, rows=rows, at_once=at_once).digest() for rows, at_once in ((4, 2), (2, 1), (8, 2))}
    assert len(found) == 2
    assert cut(plan, 1, 4, 2, rows=4, at_once=2).digest() in found


def test_layers_of_one_step_are_done_before_the_next_begin() -> None:
    old, new = contiguous_map(5, 4, 4), np.tile([2, 3, 0, 1], (5, 1))
    plan = direct_transfers(old, new, 2, 2, 1)
    batches = cut(plan, 5, 4, 2, rows=16, at_once=8, steps=np.arange(5) // 2)
    assert [sorted(set(plan.layer[batches.stage == b].tolist())) for b in range(len(batches))] == [[0, 1], [2, 3], [4]]
    assert batches.after.tolist() == [-1, 0, 1]
    assert np.array_equal(play(plan, old, 2, batches, 16), new)


def test_copies_within_ranks_alone_need_one_batch_and_nothing_to_do_none() -> None:
    old, new = np.array([[0, 1, 2, 3]]), np.array([[1, 0, 3, 2]])
    assert cut(direct_transfers(old, new, 2, 2, 1), 1, 4, 2, rows=2, at_once=1).commit.tolist() == [0] * 4
    assert len(cut(direct_transfers(old, old, 2, 2, 1), 1, 4, 2, rows=2, at_once=1)) == 0


def test_less_than_two_experts_and_hops_from_nowhere_are_refused() -> None:
    plan = direct_transfers(np.array([[0, 1]]), np.array([[1, 0]]), 2, 2, 1)
    with pytest.raises(BadInput, match="Staging of 1 experts is too small: two are the least"):
        cut(plan, 1, 2, 2, rows=1, at_once=1)
    orphan = replace(plan, kind=np.full(2, int(Kind.relay)), logical_expert=np.array([0, 5]))
    with pytest.raises(BadInput, match="row 0 forwards expert 0 of layer 0 from rank 0, and no row brings it there"):
        cut(orphan, 1, 2, 2, rows=2, at_once=1)
