"""Growing and shrinking, planned and simulated: any two maps over any ranks and slots, in one frame."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.expert_map import EMPTY, ExpertMap
from stages.needs import needs_between
from stages.plan.policies import schedule
from stages.resize import framed, without_ranks
from stages.topology import Topology
from tests.stages.plan.simulate import carry_out, finishes


@dataclass(frozen=True)
class Resize:
    old: ExpertMap
    new: ExpertMap
    ranks: int
    gpus_per_node: int


@st.composite
def resizes(draw: st.DrawFn) -> Resize:
    """A map on some ranks, of which some may be lost, and another on more or fewer, with other slots."""
    gpus = draw(st.integers(1, 3))
    had, has = gpus * draw(st.integers(1, 3)), gpus * draw(st.integers(1, 3))
    per_old, per_new = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    experts = draw(st.integers(1, min(had * per_old, has * per_new)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))

    def one(slots: int) -> ExpertMap:
        extra = rng.integers(0, experts, slots - experts)
        return np.stack([rng.permutation(np.concatenate([np.arange(experts), extra])) for _ in range(2)])

    lost = draw(st.lists(st.integers(0, had - 1), max_size=had - 1, unique=True))
    ranks, per_rank = max(had, has), max(per_old, per_new)
    old = without_ranks(one(had * per_old), had, lost, close_up=False)
    return Resize(framed(old, had, ranks, per_rank), framed(one(has * per_new), has, ranks, per_rank), ranks, gpus)


@given(resizes(), st.sampled_from(["direct", "relay"]), st.booleans())
@settings(deadline=None, max_examples=150, derandomize=True)
def test_what_a_living_rank_holds_arrives_wherever_it_shall_be(case: Resize, policy: str, rails: bool) -> None:
    topology = Topology("t", case.ranks // case.gpus_per_node, case.gpus_per_node, rails=rails)
    needs = needs_between(case.old, case.new, case.ranks).only_held()
    plan = schedule(policy, needs, topology, len(case.old), 10, 2, 64).transfers
    held = np.array([np.isin(new, old) for old, new in zip(case.old, case.new, strict=True)])
    carry_out(plan, case.old, np.where(held, case.new, EMPTY), case.ranks, case.gpus_per_node)
    assert finishes(plan, case.ranks)
