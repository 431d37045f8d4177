"""Wherever an update stops, each expert that only staging holds is put down in a slot that can spare what it holds."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.batches import Batches, cut, parked, reached
from stages.direct import direct_transfers
from stages.expert_map import EMPTY, ExpertMap
from stages.transfers import TransferPlan
from stages.update.program import compile_program
from stages.update.put_down import PutDown, plan_put_down
from tests.stages.maps import MapPair, map_pairs
from tests.stages.update.cases import relayed
from tests.stages.update.symbolic import Ranks


def stop_everywhere(
    plan: TransferPlan, old: ExpertMap, ranks: int, rows: int, faulty: set[tuple[int, int]]
) -> list[PutDown]:
    """Stop after each number of batches in turn, and play what follows."""
    layers, slots = old.shape
    batches = cut(plan, layers, slots, ranks, rows=rows, at_once=max(1, rows // 2))
    programs = [compile_program(plan, batches, rank, slots // ranks) for rank in range(ranks)]
    found = []
    for committed in range(len(batches) + 1):
        memory = Ranks(old, ranks, rows)
        memory.run(programs, last=committed)
        held = reached(plan, batches, old, committed)
        assert np.array_equal(memory.slots, held)
        put = plan_put_down(plan, batches, held, committed, ranks=ranks, rows=rows, faulty=faulty)
        check(put, plan, batches, held, committed, ranks)
        memory.run([put.program(rank, slots // ranks) for rank in range(ranks)])
        assert np.array_equal(memory.slots, put.done(held, len(batches) + ranks))
        for layer in range(layers):
            assert set(old[layer].tolist()) <= {EMPTY, *memory.slots[layer].tolist()}, "an expert is held nowhere"
        found.append(put)
    return found


def check(put: PutDown, plan: TransferPlan, batches: Batches, held: ExpertMap, committed: int, ranks: int) -> None:
    """Only what is parked and held by no slot is put down, once."""
    waiting = parked(batches, committed).tolist()
    homeless = {
        (int(plan.layer[n]), int(plan.logical_expert[n])) for n in waiting if plan.logical_expert[n] not in held[plan.layer[n]]
    }  # fmt: skip
    chosen = list(zip(put.layer.tolist(), put.expert.tolist(), strict=True))
    assert sorted(chosen) == sorted(homeless)
    owner = put.slot // (held.shape[1] // ranks)
    assert np.array_equal(put.landing < 0, owner == put.rank)


@settings(deadline=None, max_examples=80, derandomize=True)
@given(map_pairs(max_slots=4), st.integers(2, 4), st.booleans(), st.integers(0, 2**32 - 1))
def test_every_expert_is_held_wherever_the_update_stops(maps: MapPair, rows: int, relays: bool, seed: int) -> None:
    plan = direct_transfers(maps.old, maps.new, maps.ranks, maps.gpus_per_node, 1)
    if relays:
        plan = relayed(plan, maps.ranks)
    rng = np.random.default_rng(seed)
    pairs = {(int(a), int(b)) for a, b in rng.integers(0, maps.ranks, (3, 2))}
    stop_everywhere(plan, maps.old, maps.ranks, rows, pairs)


def one_cycle(ranks: int, length: int) -> tuple[ExpertMap, ExpertMap]:
    """Old and new map `[1, length]`: each slot gets the expert of another rank's, on one cycle through all slots."""
    old = np.arange(length)[None]
    path = old.reshape(ranks, -1).T.ravel()
    new = np.empty_like(old)
    new[:, path] = np.roll(path, -1)
    return old, new


def test_a_stop_in_the_middle_of_a_cycle_puts_down_what_it_was_opened_with() -> None:
    old, new = one_cycle(3, 18)
    found = stop_everywhere(direct_transfers(old, new, 3, 3, 1), old, 3, 2, set())
    assert [len(put) for put in found[:1] + found[-1:]] == [0, 0]
    assert min(len(put) for put in found[3:-2]) == 1
    landings = np.concatenate([put.landing for put in found])
    assert set(landings.tolist()) == {-1, 0, 1}


def test_a_pair_that_failed_is_avoided() -> None:
    """Expert 0 is parked on rank 0; the slots of ranks 1 and 2 can spare what they hold."""
    batches = Batches(*(np.array(column) for column in ([0, 1], [1, 1], [0, 1], [0, 0], [-1, -1])))
    columns = ([0, 0], [0, 3], [2, 2], [2, 1], [2, 1], [0, 0], [0, -1], [0, 0], [1, 1])
    plan = TransferPlan(*(np.array(column) for column in columns))
    held = np.array([[4, 5, 5]])
    for faulty, slot in ((set(), 1), ({(0, 1)}, 2), ({(0, 2)}, 1), ({(0, 1), (0, 2)}, 1), ({(1, 0)}, 1)):
        put = plan_put_down(plan, batches, held, 1, ranks=3, rows=2, faulty=faulty)
        assert (put.slot.tolist(), put.landing.tolist(), put.batch.tolist()) == ([slot], [0], [0])


def test_what_is_committed_of_it_counts() -> None:
    """Batches are committed in order, and one that fails leaves the map as it was."""
    put = PutDown(*(np.array(column) for column in ([0, 0], [5, 6], [1, 2], [0, 0], [3, 1], [0, 1], [0, 1])))
    held = np.array([[0, 1, 2, 2]])
    assert [put.done(held, batches).tolist() for batches in range(3)] == [
        [[0, 1, 2, 2]],
        [[0, 1, 2, 5]],
        [[0, 6, 2, 5]],
    ]
