"""What moving costs, and shares of ranks given anew: against every permutation, and against the direct transfers."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.balance import gpu_load
from stages.direct import direct_transfers
from stages.expert_map import EMPTY, ExpertMap, moved_slots
from stages.solvers.movement import arranged, bringing_costs, cross_node_factor, moved_and_cost, relabelled
from stages.topology import Link, Links, Topology
from stages.transfers import Kind
from tests.stages.maps import MapPair, map_pairs

SLOW = Links(Link(350.0, 10.0), Link(50.0, 20.0))


def topology_of(pair: MapPair, links: Links = SLOW) -> Topology:
    return Topology(nodes=pair.ranks // pair.gpus_per_node, gpus_per_node=pair.gpus_per_node, links=links)


def cost_of(new: ExpertMap, pair: MapPair) -> float:
    topology = topology_of(pair)
    return sum(
        moved_and_cost(row, bringing_costs(pair.old[layer], pair.experts, topology))[1] for layer, row in enumerate(new)
    )


@settings(max_examples=80, deadline=None, derandomize=True)
@given(map_pairs())
def test_cost_counts_what_the_direct_transfers_bring(pair: MapPair) -> None:
    plan = direct_transfers(pair.old, pair.new, pair.ranks, pair.gpus_per_node, 1)
    near, cross = ((plan.kind == kind).sum() for kind in (Kind.same_node, Kind.cross_node))
    moved = sum(
        moved_and_cost(row, bringing_costs(pair.old[layer], pair.experts, topology_of(pair)))[0]
        for layer, row in enumerate(pair.new)
    )
    assert moved == near + cross == moved_slots(pair.old, pair.new, pair.experts, pair.ranks)
    assert cost_of(pair.new, pair) == pytest.approx(near + cross * 7)


def test_crossing_nodes_costs_what_the_links_say() -> None:
    assert cross_node_factor(Topology(links=SLOW)) == 7
    assert cross_node_factor(Topology(links=Links(Link(2.0, 0.0), Link(2.0, 0.0)))) == 1


def shares(row: ExpertMap, ranks: int) -> list[tuple[int, ...]]:
    return [tuple(sorted(share)) for share in row.reshape(ranks, -1).tolist()]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(map_pairs(max_nodes=2, max_gpus=3, max_slots=3), st.booleans())
def test_no_way_to_give_out_the_shares_costs_less(pair: MapPair, within_nodes: bool) -> None:
    found = relabelled(pair.new, pair.old, pair.experts, topology_of(pair), within_nodes=within_nodes)
    ranks, gpus = pair.ranks, pair.gpus_per_node
    for layer in range(len(pair.new)):
        assert sorted(shares(found[layer], ranks)) == sorted(shares(pair.new[layer], ranks))
        holes = (pair.new[layer] == EMPTY).reshape(ranks, -1).sum(axis=1)
        assert ((found[layer] == EMPTY).reshape(ranks, -1).sum(axis=1) == holes).all()
        weight = bringing_costs(pair.old[layer], pair.experts, topology_of(pair))
        by_rank = pair.new[layer].reshape(ranks, -1)
        allowed = [
            order
            for order in map(list, permutations(range(ranks)))
            if (holes[order] == holes).all()
            and (not within_nodes or all(len({s // gpus for s in order[n : n + gpus]}) == 1 for n in range(0, ranks, gpus)))
        ]  # fmt: skip
        least = min(moved_and_cost(by_rank[order].reshape(-1), weight)[1] for order in allowed)
        assert moved_and_cost(found[layer], weight)[1] == pytest.approx(least)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(map_pairs(), st.integers(0, 2**32))
def test_the_balance_stays_and_nothing_moves_more(pair: MapPair, seed: int) -> None:
    load = np.random.default_rng(seed).integers(0, 100, (len(pair.new), pair.experts)).astype(float)
    found = relabelled(pair.new, pair.old, pair.experts, topology_of(pair), within_nodes=False)
    before, after = (np.sort(gpu_load(load, each, pair.ranks), axis=1) for each in (pair.new, found))
    np.testing.assert_allclose(after, before)
    assert cost_of(found, pair) <= cost_of(pair.new, pair)


def test_a_permutation_of_ranks_is_undone() -> None:
    old = np.arange(12)[None]
    new = np.roll(old.reshape(4, 3), 1, axis=0)[:, ::-1].reshape(1, 12)
    np.testing.assert_array_equal(relabelled(new, old, 12, Topology(nodes=1), within_nodes=False), old)


def test_nodes_change_places_as_a_whole() -> None:
    """Ranks 2 and 3 hold what 0 and 1 held: the nodes are exchanged, and their ranks keep together."""
    old = np.array([[0, 1, 2, 3]])
    new = np.array([[3, 2, 0, 1]])
    topology = Topology(nodes=2, gpus_per_node=2, links=SLOW)
    np.testing.assert_array_equal(relabelled(new, old, 4, topology, within_nodes=True), old)
    mixed = np.array([[0, 2, 1, 3]])  # node 0 holds what belongs together now
    found = relabelled(mixed, old, 4, topology, within_nodes=True)
    assert {frozenset(found[0, :2]), frozenset(found[0, 2:])} == {frozenset({0, 2}), frozenset({1, 3})}


@settings(max_examples=80, deadline=None, derandomize=True)
@given(map_pairs())
def test_arranging_keeps_what_a_slot_holds_already(pair: MapPair) -> None:
    found = arranged(pair.new, pair.old, pair.ranks)
    for layer in range(len(pair.new)):
        assert shares(found[layer], pair.ranks) == shares(pair.new[layer], pair.ranks)
        for old, new, out in zip(
            *(each[layer].reshape(pair.ranks, -1).tolist() for each in (pair.old, pair.new, found)), strict=True
        ):
            stay = sum(a == b for a, b in zip(old, out, strict=True))
            assert stay == sum(min(old.count(expert), new.count(expert)) for expert in set(old))
