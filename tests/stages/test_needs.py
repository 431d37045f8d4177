"""What stands between two maps: named experts without a holder, and what is left when files bring them."""

from __future__ import annotations

import numpy as np
import pytest

from stages.errors import BadInput
from stages.needs import needs_between

OLD = np.array([[0, 1, 2, -1], [0, -1, -1, 1]])
NEW = np.array([[3, 0, 3, 2], [2, 2, 3, 1]])


def test_experts_without_a_holder_are_named_and_counted() -> None:
    with pytest.raises(BadInput) as caught:
        needs_between(OLD, NEW, 2).check_held([5, 9])
    assert str(caught.value) == (
        "layer 5: logical expert 3 is needed in slot 0 (rank 0), and no slot of the old map holds it; nor does one hold "
        "layer 9: logical expert 2, layer 9: logical expert 3."
    )
    many = np.arange(24).reshape(1, 24)
    with pytest.raises(BadInput, match=r"nor does one hold (layer 0: logical expert \d, ){6}.* 7, and 16 more\.$"):
        needs_between(np.full((1, 24), -1), many, 2).check_held()
    only = np.where(NEW == 3, 0, NEW)
    with pytest.raises(BadInput, match=r"layer 1: logical expert 2 is needed in slot 0 .* holds it\.$"):
        needs_between(OLD, only, 2).check_held()
    needs_between(OLD, OLD, 2).check_held()


def test_only_what_is_held_is_left() -> None:
    needs = needs_between(OLD, NEW, 2)
    assert needs.held.tolist() == [False, False, False, False]
    assert needs.free_rider.slot.tolist() == [1]
    left = needs.only_held()
    assert (len(left.item), len(left.free_rider.item)) == (0, 0)
    assert left.same_gpu.slot.tolist() == needs.same_gpu.slot.tolist() == [1, 3]
