"""Synthetic weights: every element depends on all that it should, and on nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages import synthetic
from stages.checksum import checksum_rows
from stages.model import TensorSpec
from stages.synthetic import fill, truth
from tests.stages.test_checksum import MASK, mix

FROZEN = {  # (bytes, seed, layer, expert, tensor): the checksum of the content
    (1, 0, 0, 0, 0): 0xE6D402182967F1EC,
    (8, 0, 0, 0, 0): 0x7A90BF3A757894DC,
    (4099, 0, 1, 2, 3): 0x73E4764D2C45B53A,
    (100, -1, 60, 383, 1): 0x3B77867D9FA11F34,
    (65536, 1099511627777, 57, 255, 0): 0xD14830E4081E06CE,
}


def row_of(nbytes: int, seed: int, layer: int, expert: int, tensor: int) -> bytes:
    row = torch.empty((1, nbytes), dtype=torch.uint8)
    fill(row, seed, np.array([layer]), np.array([expert]), tensor)
    return row.numpy().tobytes()


def plain_row(nbytes: int, seed: int, layer: int, expert: int, tensor: int) -> bytes:
    """The formula of the module in Python's whole numbers."""
    h = mix(mix(mix(mix(seed & MASK) ^ layer) ^ expert) ^ tensor) | 1
    words = ((h * (2 * i + 1)) & MASK for i in range(-(-nbytes // 8)))
    return b"".join((x ^ x >> 29).to_bytes(8, "little") for x in words)[:nbytes]


@pytest.mark.parametrize(("where", "value"), FROZEN.items())
def test_content_never_changes(where: tuple[int, int, int, int, int], value: int) -> None:
    row = np.frombuffer(row_of(*where), dtype=np.uint8).copy()
    assert int(checksum_rows(torch.from_numpy(row)[None])[0]) == value


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.integers(1, 300), st.integers(-(2**63), 2**63 - 1), st.integers(0, 99), st.integers(0, 400), st.integers(0, 9)
)
def test_equals_the_formula_in_plain_python(nbytes: int, seed: int, layer: int, expert: int, tensor: int) -> None:
    assert row_of(nbytes, seed, layer, expert, tensor) == plain_row(nbytes, seed, layer, expert, tensor)


def test_every_coordinate_counts() -> None:
    places = [(s, l, e, t) for s in (-1, 0, 1, 2**40) for l in range(4) for e in range(4) for t in range(3)]
    rows = {row_of(8, *place) for place in places}
    assert len(rows) == len(places)


def test_every_element_differs() -> None:
    words = np.frombuffer(row_of(8 * 50_000, 0, 1, 2, 0), dtype=np.uint64)
    assert len(np.unique(words)) == len(words)
    ones = np.unpackbits(words.view(np.uint8)).reshape(-1, 64).mean(axis=0)
    assert (abs(ones[8:] - 0.5) < 0.02).all()  # the lowest bits of a multiplication mix least


@pytest.mark.parametrize("nbytes", [1, 7, 8, 9, 100, 4099])
def test_a_row_does_not_depend_on_its_batch(nbytes: int) -> None:
    layers, experts = np.array([3, 0, 3, 1]), np.array([5, 5, 0, 2])
    rows = torch.empty((4, nbytes), dtype=torch.uint8)
    fill(rows, 11, layers, experts, 1)
    for n in range(4):
        assert rows[n].numpy().tobytes() == row_of(nbytes, 11, int(layers[n]), int(experts[n]), 1)


@pytest.mark.parametrize("nbytes", [1, 63, 64, 65, 1000])
def test_a_longer_row_begins_like_a_shorter_one(nbytes: int) -> None:
    assert row_of(2000, 1, 2, 3, 0)[:nbytes] == row_of(nbytes, 1, 2, 3, 0)


@pytest.mark.parametrize("limit", [1, 3, 16, 1 << 20])
def test_how_much_is_made_at_once_does_not_matter(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    layers, experts = np.arange(5), np.arange(5)[::-1].copy()
    before = torch.empty((5, 133), dtype=torch.uint8)
    fill(before, 1, layers, experts, 0)
    monkeypatch.setitem(synthetic.WORDS_AT_ONCE, "cpu", limit)
    after = torch.zeros_like(before)
    fill(after, 1, layers, experts, 0)
    assert torch.equal(before, after)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ([5, 3], torch.bfloat16),
        ([7], torch.float8_e4m3fn),
        ([3, 3], torch.float8_e8m0fnu),
        ([2, 2], torch.float32),
    ],
)
def test_typed_rows_get_the_same_bytes(shape: list[int], dtype: torch.dtype) -> None:
    rows = torch.empty((3, *shape), dtype=dtype)
    layers, experts = np.zeros(3, dtype=np.int64), np.arange(3)
    fill(rows, 1, layers, experts, 2)
    nbytes = rows[0].numel() * rows.element_size()
    data = rows.view(3, -1).view(torch.uint8)
    assert [r.numpy().tobytes() for r in data] == [row_of(nbytes, 1, 0, e, 2) for e in range(3)]


def test_filling_nothing_is_no_error() -> None:
    none = np.zeros(0, dtype=np.int64)
    fill(torch.empty((0, 4)), 1, none, none, 0)
    fill(torch.empty((2, 0)), 1, np.zeros(2, dtype=np.int64), np.zeros(2, dtype=np.int64), 0)


@pytest.mark.parametrize("at_once", [1, 100, 1 << 23])
def test_truth_is_the_checksum_of_the_content(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    specs = [TensorSpec("w", [3, 5], "float8_e4m3fn"), TensorSpec("s", [4], "float32")]
    layers, experts = np.array([0, 0, 1, 7]), np.array([0, 1, 0, 200])
    monkeypatch.setitem(synthetic.TRUTH_BYTES_AT_ONCE, "cpu", at_once)
    found = truth(specs, 3, layers, experts)
    assert found.shape == (4, 2)
    for k, spec in enumerate(specs):
        rows = torch.empty((4, spec.nbytes), dtype=torch.uint8)
        fill(rows, 3, layers, experts, k)
        assert found[:, k].tolist() == checksum_rows(rows).tolist()
    assert truth(specs, 3, layers[:0], experts[:0]).shape == (0, 2)
