"""Programs as values: writes in chains and circles, and that the programs of all ranks fit each other."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.batches import cut
from stages.direct import direct_transfers
from stages.expert_map import EMPTY
from stages.update.program import NONE, Writes, compile_program, order_writes
from tests.stages.maps import MapPair, map_pairs
from tests.stages.update.cases import relayed
from tests.stages.update.symbolic import Ranks


def ordered(moves: list[tuple[int, int | None]]) -> Writes:
    """One layer, one batch: (slot, slot that it takes from, or None for row 7 of staging)."""
    source = [NONE if origin is None else origin for _, origin in moves]
    zeros = np.zeros(len(moves), dtype=np.int64)
    return order_writes(
        batch=zeros,
        layer=zeros,
        expert=np.array([100 + origin for origin in source]),
        slot=np.array([slot for slot, _ in moves]),
        from_slot=np.array(source),
        from_row=np.array([7 if origin is None else NONE for _, origin in moves]),
        batches=1,
    )


@pytest.mark.parametrize(
    ("moves", "chains"),
    [
        ([], []),
        ([(0, None)], [[0]]),
        ([(0, 1), (2, 3)], [[0], [2]]),
        ([(1, 0), (2, 1)], [[2, 1]]),
        ([(2, 1), (1, None), (3, 1)], [[2, 3, 1]]),  # two read slot 1 before it is overwritten
        ([(3, 2), (2, 1), (1, 0), (5, 2), (6, 5)], [[6, 3, 5, 2, 1]]),
        ([(0, 1), (1, 0)], [[1, 0]]),
        ([(0, 1), (1, 2), (2, 0)], [[1, 2, 0]]),
        ([(0, 1), (1, 2), (2, 0), (4, 2), (5, 4)], [[5, 4, 1, 2, 0]]),
    ],
)
def test_each_write_comes_before_the_one_that_overwrites_what_it_reads(
    moves: list[tuple[int, int | None]], chains: list[list[int]]
) -> None:
    writes = ordered(moves)
    assert sorted(tuple(sorted(chain.slot.tolist())) for chain in writes.chains()) == sorted(
        tuple(sorted(chain)) for chain in chains
    )
    held = {slot: 100 + slot for slot in range(12)}
    before = dict(held)
    for chain in writes.chains():
        last = before[int(chain.from_slot[-1])] if chain.circular[-1] else None
        assert not chain.circular[:-1].any()
        for n in range(len(chain)):
            own = held[int(chain.from_slot[n])] if chain.from_slot[n] != NONE else 99
            held[int(chain.slot[n])] = last if last is not None and n == len(chain) - 1 else own
    assert held == before | {slot: 99 if origin is None else 100 + origin for slot, origin in moves}


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_any_set_of_copies_within_a_rank_can_be_done_in_place(slots: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    targets = rng.permutation(slots)[: rng.integers(1, slots + 1)]
    origins = rng.integers(-1, slots, len(targets))
    moves = [(int(t), None if o < 0 else int(o)) for t, o in zip(targets, origins, strict=True) if t != o]
    test_each_write_comes_before_the_one_that_overwrites_what_it_reads(moves, chains_of(moves))


def chains_of(moves: list[tuple[int, int | None]]) -> list[list[int]]:
    """The connected sets of writes, where one reads what another overwrites."""
    sets = {slot: {slot} for slot, _ in moves}
    for slot, origin in moves:
        if origin in sets and sets[origin] is not sets[slot]:
            sets[origin] |= sets[slot]
            for member in sets[slot]:
                sets[member] = sets[origin]
    return [sorted(one) for one in {id(one): one for one in sets.values()}.values()]


@settings(deadline=None, max_examples=100, derandomize=True)
@given(map_pairs(max_slots=5), st.integers(2, 9), st.booleans())
def test_programs_of_all_ranks_fit_each_other(maps: MapPair, rows: int, relays: bool) -> None:
    """The n-th message that a rank sends to another is what that one takes as its n-th, and slots end as planned."""
    plan = direct_transfers(maps.old, maps.new, maps.ranks, maps.gpus_per_node, 1)
    if relays:
        plan = relayed(plan, maps.ranks)
    layers, slots = maps.old.shape
    for at_once in {1, max(1, rows // 2)}:
        batches = cut(plan, layers, slots, maps.ranks, rows=rows, at_once=at_once)
        programs = [compile_program(plan, batches, rank, slots // maps.ranks) for rank in range(maps.ranks)]
        ranks = Ranks(maps.old, maps.ranks, rows)
        ranks.run(programs)
        assert np.array_equal(ranks.slots, np.where(maps.new == EMPTY, ranks.slots, maps.new))


def test_rows_of_a_batch_keep_their_columns() -> None:
    writes = ordered([(1, 0), (2, 1), (5, 4)])
    part = writes.part(0, 2)
    assert (part.slot.tolist(), part.from_slot.tolist(), part.begin.tolist()) == ([2, 1], [1, 0], [0, 2])
    assert len(writes.of(0)) == len(writes) == 3
