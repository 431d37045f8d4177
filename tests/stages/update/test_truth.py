"""The truth is what all holders agree on; where they do not, the first expert is named with all its holders."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.errors import Corruption
from stages.expert_map import EMPTY
from stages.update.truth import agreed_truth


def world(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A map `[2, 8]` of 5 experts, some slots empty; what each expert hashes to, and what each slot does."""
    rng = np.random.default_rng(seed)
    old = rng.permuted(np.hstack([np.tile(np.arange(5), (2, 1)), rng.integers(-1, 5, (2, 3))]), axis=1)
    sums = rng.integers(0, 2**64, (2, 5, 3), dtype=np.uint64)
    before = sums[np.arange(2)[:, None], np.maximum(old, 0)]
    before[old == EMPTY] = rng.integers(0, 2**64, dtype=np.uint64)
    return old, sums, before


@settings(deadline=None, max_examples=50, derandomize=True)
@given(st.integers(0, 2**32 - 1))
def test_what_all_agree_on(seed: int) -> None:
    old, sums, before = world(seed)
    assert np.array_equal(agreed_truth(before, old, 5, ["a", "b", "c"], 4), sums)
    assert not agreed_truth(before, old, 6, ["a", "b", "c"], 4)[:, 5].any()


@settings(deadline=None, max_examples=50, derandomize=True)
@given(st.integers(0, 2**32 - 1), st.integers(0, 63))
def test_one_bit_of_one_replica(seed: int, bit: int) -> None:
    old, sums, before = world(seed)
    rng = np.random.default_rng(seed + 1)
    replicated = [(l, s) for l, s in np.argwhere(old != EMPTY).tolist() if (old[l] == old[l, s]).sum() > 1]
    if not replicated:
        return
    layer, slot = replicated[rng.integers(len(replicated))]
    before[layer, slot, 1] ^= np.uint64(1 << bit)
    with pytest.raises(Corruption) as caught:
        agreed_truth(before, old, 5, ["a", "b", "c"], 4)
    said = str(caught.value)
    assert said.startswith(
        f"The replicas of expert {old[layer, slot]} in layer {layer} differ in tensor b before anything "
    )
    holders = np.flatnonzero(old[layer] == old[layer, slot]).tolist()
    assert re.findall(r"slot (\d) \(rank (\d)\)", said) == [(str(s), str(s // 2)) for s in holders]
    for holder in holders:
        assert f"{int(before[layer, holder, 1]):016x}" in said
    assert said.endswith("; 1 experts disagree, and nothing was moved.")
    assert int(sums[layer, old[layer, slot], 1]) in {int(before[layer, holder, 1]) for holder in holders}


def test_many_holders_are_not_all_listed() -> None:
    before = np.zeros((1, 40, 1), dtype=np.uint64)
    before[0, 7] = 1
    with pytest.raises(Corruption, match=r"slot 7 \(rank 1\) 0000000000000001, …; 1 experts disagree"):
        agreed_truth(before, np.zeros((1, 40), dtype=np.int64), 1, ["w"], 8)
