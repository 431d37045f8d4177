"""What goes over the network together, against the rules, batch by batch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.exchanges import Exchange, Schedule, opened_by


@pytest.mark.parametrize(
    ("after", "phases", "hops"),
    [
        ([-1, -1, -1], [1, 1, 1], [[(0, 0)], [(1, 0)], [(2, 0)]]),
        ([-1, -1, -1], [2, 2, 2], [[(0, 0)], [(0, 1), (1, 0)], [(1, 1), (2, 0)], [(2, 1)]]),
        ([-1, -1, -1], [3, 1, 1], [[(0, 0)], [(0, 1), (1, 0)], [(0, 2), (2, 0)]]),
        ([-1, 0, 1], [2, 2, 1], [[(0, 0)], [(0, 1)], [(1, 0)], [(1, 1)], [(2, 0)]]),  # each waits for the one before
        ([-1, -1, 0], [3, 1, 1], [[(0, 0)], [(0, 1), (1, 0)], [(0, 2)], [(2, 0)]]),
    ],
)
def test_hops_go_out_with_the_next_batch(
    after: list[int], phases: list[int], hops: list[list[tuple[int, int]]]
) -> None:
    schedule = Schedule(np.array(after), np.array(phases))
    found = [exchange for batch in range(len(after)) for _, exchange in schedule.due(batch)]
    assert [list(exchange.hops) for exchange in found] == hops
    assert [exchange.opens for exchange in found] == [max((b for b, p in each if p == 0), default=-1) for each in hops]


@st.composite
def cuts(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int]:
    phases = draw(st.lists(st.integers(1, 4), min_size=1, max_size=12))
    after, latest = [], -1
    for batch in range(len(phases)):
        latest = draw(st.integers(max(-1, latest - 1), batch - 1))  # not in order, as steps and staging may have it
        after.append(latest)
    return np.array(after), np.array(phases), draw(st.integers(0, len(phases) - 1))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(cuts())
def test_every_hop_goes_out_once_and_when_it_can(cut: tuple[np.ndarray, np.ndarray, int]) -> None:
    after, phases, first = cut
    schedule, opened = Schedule(after, phases, first), opened_by(after, phases, first)
    made: dict[tuple[int, int], int] = {}
    for batch in range(first, len(after)):
        due = schedule.due(batch)
        assert schedule.due(batch) == []
        for number, exchange in due:
            assert isinstance(exchange, Exchange)
            if exchange.opens >= 0:  # whose commit it waits for has arrived, and is queued before it
                assert exchange.opens == exchange.hops[-1][0]
                waits = after[exchange.opens]
                assert waits < batch
                assert all(schedule.last(b) < number for b in range(first, waits + 1))
            for hop in exchange.hops:
                assert made.setdefault(hop, number) == number
        assert max(made.values()) >= schedule.last(batch)
        assert all(made[batch, phase] == opened[batch] + phase for phase in range(phases[batch]))
        assert schedule.last(batch) == made[batch, int(phases[batch]) - 1]
    assert sorted(made) == [(b, p) for b in range(first, len(after)) for p in range(phases[b])]
    assert sorted(set(made.values())) == list(range(max(made.values()) + 1))
