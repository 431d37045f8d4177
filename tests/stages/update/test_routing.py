"""The logical router: every replica serves, tokens have distinct experts, and turns are taken in order of slot."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.update.routing import rounds_for, route, serving_slots


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.integers(1, 20), st.integers(1, 5), st.integers(1, 9), st.integers(-3, 3), st.integers(0, 2))
def test_every_expert_gets_its_rounds(experts: int, rounds: int, top_k: int, seed: int, layer: int) -> None:
    there = np.arange(experts) * 3 + 1
    routing = route(seed, layer, there, rounds, top_k)
    each = min(top_k, experts)
    assert np.array_equal(routing.token, np.repeat(np.arange(len(routing.token) // each), each))
    for token in range(len(routing.token) // each):
        assert len(set(routing.expert[routing.token == token].tolist())) == each
    for expert in there.tolist():
        turns = routing.turn[routing.expert == expert].tolist()
        assert turns == list(range(len(turns)))
        assert rounds <= len(turns) < rounds + rounds * each + 1
    assert set(routing.expert.tolist()) <= set(there.tolist())
    again = route(seed, layer, there, rounds, top_k)
    assert np.array_equal(again.expert, routing.expert)


def test_seeds_and_layers_route_differently() -> None:
    there = np.arange(32)
    found = {tuple(route(seed, layer, there, 2, 4).expert.tolist()) for seed in (0, 1, -1) for layer in range(3)}
    assert len(found) == 9


def test_no_experts_no_tokens() -> None:
    assert len(route(0, 0, np.empty(0, dtype=np.int64), 3, 2).expert) == 0


@pytest.mark.parametrize("seed", range(20))
def test_replicas_take_turns(seed: int) -> None:
    rng = np.random.default_rng(seed)
    experts, slots = int(rng.integers(1, 9)), 24
    rows = []
    for _ in range(2):
        row = np.concatenate([np.arange(experts), rng.integers(-1, experts, slots - experts)])
        rows.append(rng.permutation(row))
    rounds = rounds_for([row[None] for row in rows], experts)
    assert rounds == max(np.bincount(row[row >= 0]).max() for row in rows)
    routing = route(seed, 0, np.arange(experts), rounds, 3)
    for row in rows:
        serving = serving_slots(routing, row)
        for n, (expert, turn) in enumerate(zip(routing.expert.tolist(), routing.turn.tolist(), strict=True)):
            replicas = [slot for slot in range(slots) if row[slot] == expert]
            assert serving[n] == replicas[turn % len(replicas)]
        assert set(serving.tolist()) == set(np.flatnonzero(row >= 0).tolist())
