"""How staging memory is laid out and spent."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.errors import BadInput
from stages.staging import ALIGNMENT, MIB, SMALL_BYTES, Layout, budget
from stages.update.staging import Staging, as_bytes

SIZES = st.lists(
    st.sampled_from([1, 3, 16, 100, 4096, SMALL_BYTES - 1, SMALL_BYTES, 3 * MIB + 5]), min_size=1, max_size=5
)


def test_large_and_small_tensors_have_areas_of_their_own() -> None:
    layout = Layout.of([SMALL_BYTES, 5, 2 * MIB + 1, 17])
    assert layout.small == (False, True, False, True)
    assert layout.offsets == (0, 0, SMALL_BYTES, 16)
    assert (layout.large_row, layout.small_row) == (3 * MIB + 16, 48)
    assert layout.row_bytes == 3 * MIB + 64
    assert layout.small_padding == 26
    assert layout.starts(10) == [0, 10 * layout.large_row, SMALL_BYTES, 10 * layout.large_row + 16]
    assert layout.strides() == [layout.large_row, 48, layout.large_row, 48]


@settings(deadline=None, max_examples=30, derandomize=True)
@given(SIZES, st.integers(1, 3))
def test_no_two_tensors_share_a_byte(sizes: list[int], rows: int) -> None:
    layout = Layout.of(sizes)
    staging = Staging(layout, rows, torch.zeros(layout.total(rows), dtype=torch.uint8))
    for row in range(rows):
        for k, size in enumerate(sizes):
            tensor = staging.tensor(row, k)
            assert tensor.shape == (size,)
            assert not tensor.any(), "another tensor lies here"
            tensor.fill_(1)
            start = tensor.data_ptr() - staging.data.data_ptr()
            assert start == layout.starts(rows)[k] + row * layout.strides()[k]
            assert start % ALIGNMENT == 0
    if layout.small_row:
        small = staging.small_rows(0, rows)
        assert small.numel() == rows * layout.small_row
        assert int(small.sum()) == rows * (layout.small_row - layout.small_padding)
    assert torch.equal(staging.tensors(0, rows, 0), torch.ones(rows, sizes[0], dtype=torch.uint8))


@settings(deadline=None, max_examples=200, derandomize=True)
@given(SIZES, st.floats(0.001, 4096), st.booleans(), st.integers(1, 5000))
def test_the_budget_is_kept(sizes: list[int], staging_mib: float, packs: bool, most: int) -> None:
    layout = Layout.of(sizes)
    if staging_mib * MIB < 2 * layout.row_bytes:
        with pytest.raises(BadInput):
            budget(layout, staging_mib, packs=packs, most=most)
        return
    spent = budget(layout, staging_mib, packs=packs, most=most)
    assert spent.nbytes(layout) <= staging_mib * MIB
    assert spent.rows >= 2
    assert 1 <= spent.at_least <= spent.at_once <= spent.rows
    assert spent.packed in (0, spent.at_once)
    assert packs or not spent.packed
    assert spent.rows <= max(2, 4 * most), "more than ever arrives"


@pytest.mark.parametrize("sizes", [[1], [1000, 20], [5 * MIB, 100], [44 * MIB, 8192]])
@pytest.mark.parametrize("packs", [True, False])
def test_too_little_is_refused_with_the_least_that_works(sizes: list[int], packs: bool) -> None:
    layout = Layout.of(sizes)
    with pytest.raises(BadInput) as caught:
        budget(layout, 1.99 * layout.row_bytes / MIB, packs=packs, most=100)
    found = re.match(
        rf"update\.staging_mib=\S+ is too small: two experts of {layout.row_bytes:,} bytes are the least, which "
        r"update\.staging_mib=(\S+) holds\.$",
        str(caught.value),
    )
    assert found, str(caught.value)
    spent = budget(layout, float(found[1]), packs=packs, most=100)
    assert (spent.rows >= 2, spent.packed) == (True, 0) or float(found[1]) <= 0.001


def test_small_staging_goes_by_single_experts_and_large_by_batches() -> None:
    layout = Layout.of([4 * MIB, 2 * MIB, 1000])
    two = budget(layout, 13, packs=True, most=500)
    assert (two.rows, two.at_once, two.packed) == (2, 1, 0)
    large = budget(layout, 1024, packs=True, most=500)
    assert (large.rows, large.at_once, large.packed) == (4 * 42, 42, 42)
    assert budget(layout, 1024, packs=True, most=3).at_once == 3


def test_tensors_as_bytes_in_place() -> None:
    tensors = [torch.zeros(3, 2, 5, dtype=torch.bfloat16), torch.zeros(3, 4, dtype=torch.float8_e4m3fn)]
    views = as_bytes(tensors)
    assert [tuple(view.shape) for view in views] == [(3, 20), (3, 4)]
    views[1][2, 3] = 0x38
    assert float(tensors[1][2, 3]) == 1.0
