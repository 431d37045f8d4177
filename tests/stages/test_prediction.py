"""What executors need: of the batches they make, within the staging that there is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from stages.errors import BadInput
from stages.needs import needs_between
from stages.plan.policies import schedule
from stages.prediction import predict
from stages.topology import Device, Link, Links, Topology
from stages.transfers import TransferPlan

GB = 10**9
TOPOLOGY = Topology("t", 1, 2, links=Links(Link(1.0), Link(1.0)), device=Device(1e9, 1e9))
LAYERS, SLOTS = 4, 16


def swapped() -> TransferPlan:
    """All experts of one rank go to the other, in every layer."""
    old = np.tile(np.arange(SLOTS), (LAYERS, 1))
    new = np.roll(old, SLOTS // 2, axis=1)
    return schedule("direct", needs_between(old, new, 2), TOPOLOGY, LAYERS, GB // 100, 1, 64).transfers


def seconds(
    plan: TransferPlan, executor: str = "pipelined", staging_mib: float = 1e4, **more: int
) -> tuple[float, int]:
    found = predict(
        plan, LAYERS, SLOTS, TOPOLOGY, [GB // 100], executor=executor, one_group=True, staging_mib=staging_mib, **more
    )  # fmt: skip
    return found.seconds, len(found.parts)


def test_bytes_take_what_the_link_takes_whoever_carries_them() -> None:
    moved = LAYERS * SLOTS // 2 * 0.01
    assert seconds(swapped(), "reference") == (pytest.approx(moved), LAYERS)
    assert seconds(swapped())[0] == pytest.approx(moved, rel=1e-6)


def test_less_staging_and_steps_of_layers_make_more_batches() -> None:
    _, batches = seconds(swapped())
    assert seconds(swapped(), staging_mib=20)[1] > batches
    assert seconds(swapped(), layers_per_step=1)[1] >= LAYERS


def test_a_batch_that_waits_for_a_commit_overlaps_nothing() -> None:
    """A layer takes 16 ms on the network and as long to hash, which overlaps the next one's network within a step."""
    plan, hashing = swapped(), replace(TOPOLOGY, device=Device(1e9, 1.0))
    plan = replace(plan, bytes=np.full(len(plan), GB // 500))
    found = predict(
        plan, LAYERS, SLOTS, hashing, [GB // 500], executor="pipelined", one_group=True, staging_mib=1e4, layers_per_step=1
    )  # fmt: skip
    assert found.parts == pytest.approx(np.full(LAYERS, 0.032), rel=1e-5)
    found = predict(
        plan, LAYERS, SLOTS, hashing, [GB // 500], executor="pipelined", one_group=True, staging_mib=62
    )  # fmt: skip
    assert found.parts == pytest.approx([0.032, *[0.016] * (LAYERS - 1)], rel=1e-5)


def test_nothing_to_move_takes_no_time() -> None:
    plan = swapped()
    assert seconds(plan.select(np.zeros(len(plan), dtype=bool))) == (0.0, 0)


def test_staging_for_less_than_two_experts_is_refused_with_what_works() -> None:
    with pytest.raises(BadInput, match=r"update\.staging_mib=10 is too small: .* update\.staging_mib=20 holds"):
        seconds(swapped(), staging_mib=10)
