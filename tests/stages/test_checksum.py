"""The checksum: frozen values, a plain-Python reference, and the changes it is certain to notice."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stages import checksum
from stages.checksum import block_keys, checksum_rows, column_keys

FROZEN = {
    0: 0xE220A8397B1DCDAF,
    1: 0x56652F789AD28649,
    2: 0xEC01D6A99556E61D,
    3: 0x8BD47A0312A9DE55,
    4: 0xEBDA1EC618BB6594,
    5: 0x18D55628753DAD92,
    8: 0xBAA28CF12A1637AF,
    100: 0x6C4414CF8D7780D5,
    4095: 0x44F39331791B4FBB,
    4096: 0x32B2A9FB62E3A352,
    4097: 0x07379D2F9D8851D1,
    8192: 0x5A1EBD8006C633BF,
    12345: 0x726EA2B7D3685D37,
    70001: 0x276121A6306C3DC2,
    600003: 0xF64F8865856C7632,
}

MASK = 2**64 - 1
SIZES = st.one_of(st.integers(1, 40), st.integers(4080, 4110), st.integers(8185, 20_000))


def pattern(nbytes: int) -> bytes:
    return bytes((7 * i + i // 251 + 3) % 256 for i in range(nbytes))


def rows_of(*rows: bytes) -> torch.Tensor:
    return torch.from_numpy(np.stack([np.frombuffer(row, dtype=np.uint8) for row in rows]))


def checksum_of(data: bytes) -> int:
    return int(checksum_rows(rows_of(data))[0])


def random_bytes(seed: int, nbytes: int) -> bytes:
    return np.random.default_rng(seed).bytes(nbytes)


def mix(value: int) -> int:
    x = (value + 1) * 0x9E3779B97F4A7C15 & MASK
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ x >> 27) * 0x94D049BB133111EB & MASK
    return x ^ x >> 31


def plain_checksum(data: bytes) -> int:
    """The formula of the module, word by word in Python's whole numbers."""
    padded = data + bytes(-len(data) % 4)
    total = 0
    for i in range(len(padded) // 4):
        block, column = divmod(i, 1024)
        word = int.from_bytes(padded[4 * i : 4 * i + 4], "little", signed=True)
        key = 2 * column + 1 + (mix(column) << 11)
        factor = 1 + (block << 11) + (mix(block ^ 0x5851F42D4C957F2D) << 33)
        total += word * key * factor
    return mix((total + len(data) * 0xD6E8FEB86659FD93) & MASK)


@pytest.mark.parametrize(("nbytes", "value"), FROZEN.items())
def test_values_never_change(nbytes: int, value: int) -> None:
    assert checksum_of(pattern(nbytes)) == value


@settings(max_examples=25, deadline=None, derandomize=True)
@given(SIZES, st.integers(0, 2**32))
def test_equals_the_formula_in_plain_python(nbytes: int, seed: int) -> None:
    data = random_bytes(seed, nbytes)
    assert checksum_of(data) == plain_checksum(data)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(SIZES, st.integers(0, 2**32), st.data())
def test_every_flipped_bit_changes_it(nbytes: int, seed: int, draw: st.DataObject) -> None:
    data = bytearray(random_bytes(seed, nbytes))
    before = checksum_of(bytes(data))
    bit = draw.draw(st.integers(0, 8 * nbytes - 1))
    data[bit // 8] ^= 1 << bit % 8
    assert checksum_of(bytes(data)) != before


def test_each_bit_of_a_small_row_counts() -> None:
    data = pattern(70)
    rows = [data]
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        rows.append(bytes(flipped))
    assert len(set(checksum_rows(rows_of(*rows)).tolist())) == len(rows)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.integers(2, 5000), st.integers(0, 2**32), st.data())
def test_a_swap_of_two_words_changes_it(words: int, seed: int, draw: st.DataObject) -> None:
    data = np.frombuffer(random_bytes(seed, 4 * words), dtype=np.uint32).copy()
    first, second = draw.draw(st.lists(st.integers(0, words - 1), min_size=2, max_size=2, unique=True))
    swapped = data.copy()
    swapped[[first, second]] = data[[second, first]]
    assert (checksum_of(data.tobytes()) == checksum_of(swapped.tobytes())) == (data[first] == data[second])


def test_the_worst_swaps_change_it() -> None:
    """Words that differ by 2^31, at distances that are powers of two: the most that can cancel modulo 2^64."""
    words = np.zeros(1024 * 130, dtype=np.uint32)
    words[0] = 2**31
    rows = [np.roll(words, 2**j).tobytes() for j in range(18)]
    assert len(set(checksum_rows(rows_of(words.tobytes(), *rows)).tolist())) == 19


@settings(max_examples=50, deadline=None, derandomize=True)
@given(SIZES, st.integers(0, 2**32), st.booleans(), st.data())
def test_truncation_changes_it(nbytes: int, seed: int, zeros: bool, draw: st.DataObject) -> None:
    data = bytes(nbytes) if zeros else random_bytes(seed, nbytes)
    kept = draw.draw(st.integers(0, nbytes - 1))
    assert checksum_of(data) != checksum_of(data[:kept])


@pytest.mark.parametrize(
    "dtype",
    [
        torch.uint8,
        torch.int8,
        torch.int16,
        torch.bfloat16,
        torch.float16,
        torch.float32,
        torch.float64,
        torch.int64,
        torch.float8_e4m3fn,
        torch.float8_e5m2,
        torch.float8_e8m0fnu,
    ],
)
@pytest.mark.parametrize("nbytes", [16, 240, 4096, 9008])
def test_the_dtype_does_not_matter(dtype: torch.dtype, nbytes: int) -> None:
    rows = rows_of(random_bytes(1, nbytes), random_bytes(2, nbytes))
    typed = rows.view(dtype)
    assert checksum_rows(typed).tolist() == checksum_rows(rows).tolist()
    shaped = typed.view(2, 2, -1)
    assert checksum_rows(shaped).tolist() == checksum_rows(rows).tolist()


@pytest.mark.parametrize("nbytes", [1, 3, 4, 6, 4096, 4100, 4099, 9001])
@pytest.mark.parametrize("offset", [0, 1, 2, 3, 4])
def test_where_the_rows_lie_does_not_matter(nbytes: int, offset: int) -> None:
    data = [random_bytes(n, nbytes) for n in range(3)]
    storage = torch.zeros(offset + 3 * nbytes, dtype=torch.uint8)
    storage[offset:] = rows_of(*data).flatten()
    rows = storage[offset:].view(3, nbytes)
    alone = [checksum_of(row) for row in data]
    assert checksum_rows(rows).tolist() == alone
    spread = torch.zeros((3, 2 * nbytes + 1), dtype=torch.uint8)
    spread[:, 1 : 1 + nbytes] = rows
    assert checksum_rows(spread[:, 1 : 1 + nbytes]).tolist() == alone
    columns = rows.t().contiguous().t()
    assert checksum_rows(columns).tolist() == alone
    assert checksum_rows(rows[1:]).tolist() == alone[1:]


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.bfloat16])
def test_rows_that_are_not_contiguous_count_as_their_copy(dtype: torch.dtype) -> None:
    rows = rows_of(*(random_bytes(n, 48) for n in range(4))).view(dtype).view(4, 6, -1)
    assert checksum_rows(rows.transpose(1, 2)).tolist() == checksum_rows(rows.transpose(1, 2).contiguous()).tolist()


@pytest.mark.parametrize("chunk", [1, 4096, 10_000, 1 << 30])
def test_how_much_is_taken_at_once_does_not_matter(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    rows = rows_of(*(random_bytes(n, 5 * 4096 + 77) for n in range(5)))
    before = checksum_rows(rows).tolist()
    monkeypatch.setitem(checksum.CHUNK_BYTES, "cpu", chunk)
    assert checksum_rows(rows).tolist() == before


def test_one_dimension_and_nothing() -> None:
    values = torch.arange(5, dtype=torch.int32)
    assert checksum_rows(values).tolist() == [plain_checksum(n.to_bytes(4, "little")) for n in range(5)]
    assert checksum_rows(torch.zeros((0, 4), dtype=torch.bfloat16)).shape == (0,)
    assert checksum_rows(torch.zeros((2, 0))).tolist() == [plain_checksum(b"")] * 2


def two_adic(values: np.ndarray) -> np.ndarray:
    """How often 2 divides each of `values` (uint64, none zero)."""
    lowest = values & (~values + np.uint64(1))
    return np.log2(lowest.astype(np.float64)).astype(np.int64)


def test_key_products_are_odd_and_differ_by_a_multiple_of_at_most_2_to_the_32() -> None:
    """What makes single changes and swaps certain to be seen, for rows up to 16 GiB (2^22 blocks)."""
    columns, blocks = column_keys(), block_keys(1 << 22)
    assert (columns % 2 == 1).all()
    assert (blocks % 2 == 1).all()
    # Within a block, and between any two: of different columns, the low 11 bits of the products differ.
    low = columns[None, :] * blocks[:: 1 << 16, None] % 2**11
    assert (low == (2 * np.arange(1024) + 1)[None, :]).all()
    # In one column, the blocks' factors differ by an odd multiple of 2^11 times the power of two of their distance.
    for power in range(22):
        differences = blocks[1 << power :] - blocks[: -1 << power]
        assert (two_adic(differences[:: max(1, len(differences) // 5000)]) == 11 + power).all()
    rng = np.random.default_rng(0)
    column, block = rng.integers(0, 1024, (2, 200_000)), rng.integers(0, 1 << 22, (2, 200_000))
    apart = (column[0] != column[1]) | (block[0] != block[1])
    products = columns[column[:, apart]] * blocks[block[:, apart]]
    assert two_adic(products[0] - products[1]).max() <= 32
