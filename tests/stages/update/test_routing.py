"""The logical router: every replica serves, tokens have distinct experts, and turns are taken in order of slot."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.update.routing import most_replicas, route, serving_slots


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.integers(1, 20), st.integers(1, 5), st.integers(1, 9), st.integers(-3, 3), st.integers(0, 2))
def test_every_expert_gets_what_it_needs(experts: int, most: int, top_k: int, seed: int, layer: int) -> None:
    there = np.arange(experts) * 3 + 1
    needs = np.random.default_rng([experts, most]).integers(1, most + 1, experts)
    routing = route(seed, layer, there, needs, top_k)
    each = min(top_k, experts)
    assert np.array_equal(routing.token, np.repeat(np.arange(len(routing.token) // each), each))
    for token in range(len(routing.token) // each):
        assert len(set(routing.expert[routing.token == token].tolist())) == each
    for expert, need in zip(there.tolist(), needs.tolist(), strict=True):
        turns = routing.turn[routing.expert == expert].tolist()
        assert turns == list(range(len(turns)))
        assert len(turns) >= need
    assert set(routing.expert.tolist()) <= set(there.tolist())
    assert len(routing.expert) < needs.sum() + most * each
    again = route(seed, layer, there, needs, top_k)
    assert np.array_equal(again.expert, routing.expert)


def test_seeds_and_layers_route_differently() -> None:
    there = np.arange(32)
    found = {
        tuple(route(seed, layer, there, np.full(32, 2), 4).expert.tolist()) for seed in (0, 1, -1) for layer in range(3)
    }
    assert len(found) == 9


def test_no_experts_no_tokens() -> None:
    none = np.empty(0, dtype=np.int64)
    assert len(route(0, 0, none, none, 2).expert) == 0


@pytest.mark.parametrize("seed", range(20))
def test_replicas_take_turns(seed: int) -> None:
    rng = np.random.default_rng(seed)
    experts, slots = int(rng.integers(1, 9)), 24
    rows = []
    for _ in range(2):
        row = np.concatenate([np.arange(experts), rng.integers(-1, experts, slots - experts)])
        rows.append(rng.permutation(row))
    (needs,) = most_replicas([row[None] for row in rows], experts)
    assert needs.tolist() == np.max([np.bincount(row[row >= 0], minlength=experts) for row in rows], axis=0).tolist()
    routing = route(seed, 0, np.arange(experts), needs, 3)
    for row in rows:
        serving = serving_slots(routing, row)
        for n, (expert, turn) in enumerate(zip(routing.expert.tolist(), routing.turn.tolist(), strict=True)):
            replicas = [slot for slot in range(slots) if row[slot] == expert]
            assert serving[n] == replicas[turn % len(replicas)]
        assert set(serving.tolist()) == set(np.flatnonzero(row >= 0).tolist())
