"""The vectorised expectation and comparison against loops that say the same plainly."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.checksum_table import ChecksumTable
from stages.expert_map import EMPTY
from stages.verify.audit import audit
from stages.verify.expected import Filled, majority

EXPERTS, TENSORS = 3, 2


@st.composite
def tables(draw: st.DrawFn) -> tuple[ChecksumTable, np.ndarray]:
    """A table with few different checksums, so that they agree often, and the truth about its experts."""
    layers, slots = draw(st.integers(1, 3)), draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    before, after = (rng.integers(0, 3, (layers, slots, TENSORS)).astype(np.uint64) for _ in range(2))
    old, new = (rng.integers(EMPTY, EXPERTS, (layers, slots)) for _ in range(2))
    truth = rng.integers(0, 3, (layers * EXPERTS, TENSORS)).astype(np.uint64)
    return ChecksumTable(before, after, old, new, ("a", "b"), slots), truth


def plain_majority(values: list[int]) -> int:
    """Of equally many the first: `Counter` keeps the order in which it met them."""
    return Counter(values).most_common(1)[0][0] if values else 0


@settings(max_examples=60, deadline=None, derandomize=True)
@given(tables())
def test_majority_is_what_a_count_says(case: tuple[ChecksumTable, np.ndarray]) -> None:
    table, _ = case
    layers = table.old.shape[0]
    found = majority(Filled.of(table.old, table.before, EXPERTS), layers * EXPERTS)
    for layer in range(layers):
        for expert in range(EXPERTS):
            for k in range(TENSORS):
                values = table.before[layer, table.old[layer] == expert, k].tolist()
                assert found[layer * EXPERTS + expert, k] == plain_majority(values)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(tables(), st.booleans())
def test_the_audit_names_exactly_what_differs(case: tuple[ChecksumTable, np.ndarray], with_truth: bool) -> None:
    table, truth = case
    named = {
        (m.layer, m.slot, table.tensors.index(m.tensor), m.when): (m.logical_expert, m.against, int(m.expected, 16))
        for m in audit(table, EXPERTS, truth if with_truth else None).mismatches
    }
    plain = {}
    for layer, slot, k in np.ndindex(table.before.shape):
        for when, expert_map, sums in (("after", table.new, table.after), ("before", table.old, table.before)):
            expert = int(expert_map[layer, slot])
            if expert == EMPTY:
                continue
            holders = table.before[layer, table.old[layer] == expert, k].tolist()
            replicas = table.after[layer, table.new[layer] == expert, k].tolist()
            want = int(truth[layer * EXPERTS + expert, k]) if with_truth else plain_majority(holders or replicas)
            told = when == "before" and (layer, slot, k, "after") in plain and expert == table.new[layer, slot]
            if sums[layer, slot, k] != want and not told:
                by_holders = "old holders" if when == "after" else "replicas"
                against = by_holders if want in holders else "source" if with_truth else "replicas"
                plain[layer, slot, k, when] = (expert, against, want)
    assert named == plain


def test_an_empty_map_has_nothing_to_compare() -> None:
    nothing = np.zeros((1, 2, 1), dtype=np.uint64)
    empty = np.full((1, 2), EMPTY)
    found = audit(ChecksumTable(nothing, nothing, empty, empty, ("a",), 1), 2, None)
    assert (found.mismatches, found.slots_before, found.slots_after) == ([], 0, 0)
