"""The batches that predictions assume: those of `stages.batches`, within the staging that there is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.needs import needs_between
from stages.plan.batching import batches_of
from stages.plan.policies import schedule
from stages.topology import Topology
from tests.stages.maps import MapPair, map_pairs

MIB = 1 << 20


@given(map_pairs(max_slots=6), st.sampled_from(["direct", "relay"]), st.sampled_from([2, 4, 8, 1000]))
@settings(deadline=None, max_examples=60, derandomize=True)
def test_every_row_has_a_batch_that_fits(pair: MapPair, policy: str, staging_mib: int) -> None:
    topology = Topology("t", pair.ranks // pair.gpus_per_node, pair.gpus_per_node)
    needs = needs_between(pair.old, pair.new, pair.ranks)
    plan = schedule(policy, needs, topology, len(pair.old), MIB, 2, 64).transfers
    batch, phase = batches_of(plan, len(pair.old), pair.new.shape[1], pair.ranks, MIB, staging_mib)
    assert len(batch) == len(phase) == len(plan)
    assert min(batch.min(initial=0), phase.min(initial=0)) == 0
    network = plan.network
    if network.any():
        assert set(batch[network]) == set(range(int(batch[network].max()) + 1))
        arrivals = np.bincount(batch[network] * pair.ranks + plan.dst_rank[network])
        assert arrivals.max() <= max(1, staging_mib // 2)


def test_staging_for_less_than_two_experts_is_taken_as_two() -> None:
    old = np.array([[0, 1, 2, 3]])
    needs = needs_between(old, old[:, ::-1].copy(), 4)
    plan = schedule("direct", needs, Topology("t", 2, 2), 1, MIB, 1, 64).transfers
    batch, _ = batches_of(plan, 1, 4, 4, MIB, 0.5)
    assert batch.tolist() == pytest.approx([0, 0, 0, 0])
