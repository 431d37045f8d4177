"""What public dumps have wrong, each defect in a fixture: named per layer and row, dropped, or repaired."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from stages.collect.defects import broken_router
from stages.collect.repair import apportion
from stages.contract import StageResult
from stages.errors import BadInput
from stages.load import LoadStats
from tests.stages.collect.helpers import model, run_table

LAYERS, EXPERTS, TOP_K = 5, 16, 2
SPEC = model(LAYERS, EXPERTS, top_k=TOP_K)


def healthy(windows: int = 12, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """[T, L, E] as a router that works gives them, and [T] tokens."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(40, 90, windows)
    skew = rng.dirichlet(np.full(EXPERTS, 0.8), LAYERS)
    count = np.stack([[rng.multinomial(n * TOP_K, share) for share in skew] for n in tokens])
    return count, tokens


def read(
    path: Path, count: np.ndarray, tokens: np.ndarray | None = None, **options: object
) -> tuple[StageResult, LoadStats]:
    arrays = {"logical_count": count} | ({} if tokens is None else {"tokens": tokens})
    np.savez(path / "dump.npz", **arrays)
    spec = options.pop("spec", SPEC)
    return run_table(path / "dump.npz", spec, **options)  # type: ignore[arg-type]


def message(path: Path, count: np.ndarray, tokens: np.ndarray | None = None, **options: object) -> str:
    with pytest.raises(BadInput) as error:
        read(path, count, tokens, **options)
    return str(error.value)


@pytest.mark.parametrize("top_k", [TOP_K, None])
@pytest.mark.parametrize("on_bad", ["error", "drop", "repair"])
def test_a_healthy_dump_comes_through_untouched(tmp_path: Path, on_bad: str, top_k: int | None) -> None:
    count, tokens = healthy()
    result, load = read(tmp_path, count, tokens, on_bad=on_bad, spec=model(LAYERS, EXPERTS, top_k=top_k))
    np.testing.assert_array_equal(load.logical_count, count)
    assert not [tag for tag in result.tags if "bad" in tag or "repeated" in tag]


class TestBrokenRouter:
    """A layer whose NaN router sends everything to experts 0 … k-1."""

    def dump(self, rows: slice = slice(None)) -> tuple[np.ndarray, np.ndarray]:
        count, tokens = healthy()
        count[rows, 3] = 0
        count[rows, 3, :TOP_K] = tokens[rows, None]
        return count, tokens

    @pytest.mark.parametrize("top_k", [TOP_K, None])
    def test_it_is_named(self, tmp_path: Path, top_k: int | None) -> None:
        words = message(tmp_path, *self.dump(slice(4, 9)), spec=model(LAYERS, EXPERTS, top_k=top_k))
        assert (
            "layer 3 sends every token to its first experts, as a router that computes NaN does, in rows 4, 5, 6"
            in words
        )
        assert "collect.on_bad=drop leaves out what is bad" in words

    def test_drop_leaves_the_layer_out_of_those_rows(self, tmp_path: Path) -> None:
        count, tokens = self.dump(slice(4, 9))
        result, load = read(tmp_path, count, tokens, on_bad="drop")
        expected = count.copy()
        expected[4:9, 3] = 0
        np.testing.assert_array_equal(load.logical_count, expected)
        assert result.tags["bad_counts_dropped"] == "5"
        assert "Dropped: layer 3 sends every token to its first experts" in result.note

    def test_repair_puts_in_what_the_good_rows_say(self, tmp_path: Path) -> None:
        count, tokens = self.dump(slice(4, 9))
        result, load = read(tmp_path, count, tokens, on_bad="repair")
        good = np.delete(count[:, 3], slice(4, 9), axis=0).sum(axis=0)
        others = np.delete(np.arange(LAYERS), 3)
        np.testing.assert_array_equal(load.logical_count[:, others], count[:, others])
        np.testing.assert_array_equal(load.logical_count[:, 3].sum(axis=1), tokens * TOP_K)
        mended = load.logical_count[4:9, 3] / (tokens[4:9, None] * TOP_K)
        np.testing.assert_allclose(mended, np.tile(good / good.sum(), (5, 1)), atol=1 / 80)
        assert result.tags["bad_counts_repaired"] == "5"

    def test_a_layer_that_never_worked(self, tmp_path: Path) -> None:
        count, tokens = self.dump()
        assert "layer 3 sends every token" in message(tmp_path, count, tokens)
        assert "layer 3 has no tokens at all" in message(tmp_path, count, tokens, on_bad="drop")
        _, load = read(tmp_path, count, tokens, on_bad="repair")
        even = load.logical_count[:, 3]
        np.testing.assert_array_equal(even.sum(axis=1), tokens * TOP_K)
        assert even.max() - even.min() <= even.mean()
        assert (even.max(axis=1) - even.min(axis=1) <= 1).all()

    def test_rows_of_a_token_add_up_to_evidence(self, tmp_path: Path) -> None:
        """One token that goes to experts 0 and 1 means nothing; a layer in which all do does."""
        rng = np.random.default_rng(2)
        count = np.zeros((30, LAYERS, EXPERTS), dtype=int)
        for row in range(30):
            for layer in range(LAYERS):
                count[row, layer, rng.choice(EXPERTS, TOP_K, replace=False)] = 1
        count[7, 0] = 0
        count[7, 0, :TOP_K] = 1
        np.testing.assert_array_equal(read(tmp_path, count)[1].logical_count, count)
        count[:, 2] = 0
        count[:, 2, :TOP_K] = 1
        words = message(tmp_path, count)
        assert "layer 2 sends every token" in words
        assert "layer 0" not in words

    @settings(deadline=None, max_examples=60, derandomize=True)
    @given(
        arrays(np.int64, array_shapes(min_dims=3, max_dims=3, max_side=5), elements=st.integers(0, 3)),
        st.integers(1, 5),
    )
    def test_the_pattern_is_what_it_says(self, count: np.ndarray, top_k: int) -> None:
        found, evidence = broken_router(count, top_k)
        for row, layer in np.ndindex(found.shape):
            first, rest = count[row, layer, :top_k], count[row, layer, top_k:]
            assert found[row, layer] == (len(rest) > 0 and first[0] > 0 and len(set(first)) == 1 and not rest.any())
        assert ((evidence > 0) == found).all()


class TestRepeats:
    """Blocks of repeated rows: the padding of a warm-up."""

    def dump(self) -> tuple[np.ndarray, np.ndarray]:
        count, tokens = healthy()
        order = np.concatenate([[0] * 9, np.arange(12), np.tile([2, 3], 6)])
        return count[order], tokens[order]

    def test_they_are_named(self, tmp_path: Path) -> None:
        words = message(tmp_path, *self.dump())
        assert "rows 1, 2, 3, 4, 5 and 16 more (windows, counted from 0) repeat earlier rows in every layer" in words
        assert "row 1 is row 0 again" in words

    @pytest.mark.parametrize("on_bad", ["drop", "repair"])
    def test_the_first_of_them_is_kept(self, tmp_path: Path, on_bad: str) -> None:
        result, load = read(tmp_path, *self.dump(), on_bad=on_bad)
        np.testing.assert_array_equal(load.logical_count, healthy()[0])
        assert result.tags["repeated_rows_dropped"] == "21"
        assert "Dropped: rows 1, 2, 3, 4, 5 and 16 more" in result.note

    def test_as_many_as_in_one_public_file(self, tmp_path: Path) -> None:
        count = np.random.default_rng(1).multinomial(80, np.full(EXPERTS, 1 / EXPERTS), (2397, LAYERS))
        padded = np.concatenate([count, np.repeat(count[:1], 16_421, axis=0)])
        assert len(padded) == 18_818
        result, load = read(tmp_path, padded, on_bad="drop")
        np.testing.assert_array_equal(load.logical_count, count)
        assert result.tags["repeated_rows_dropped"] == "16421"

    def test_what_is_no_sign_of_padding(self, tmp_path: Path) -> None:
        """Two requests alike, rows as even as nobody's router, and rows of hardly any token."""
        count, tokens = healthy()
        twice = np.concatenate([count, count[:3]])
        np.testing.assert_array_equal(read(tmp_path, twice, np.append(tokens, tokens[:3]))[1].logical_count, twice)
        even = np.full((20, LAYERS, EXPERTS), 8)
        np.testing.assert_array_equal(read(tmp_path, even)[1].logical_count, even)
        few = np.zeros((20, LAYERS, EXPERTS), dtype=int)
        few[:, :, 5] = 1
        few[:, :, 9] = 1
        np.testing.assert_array_equal(read(tmp_path, few)[1].logical_count, few)


class TestSums:
    """Rows whose sum differs from tokens × top_k."""

    def dump(self) -> tuple[np.ndarray, np.ndarray]:
        count, tokens = healthy()
        count[[2, 5], 1] //= 2
        count[7, 4, 3] += 1
        return count, tokens

    @pytest.mark.parametrize("known", [True, False])
    def test_they_are_named_with_what_is_expected(self, tmp_path: Path, known: bool) -> None:
        """… which the source says, or the other layers of the row agree about."""
        count, tokens = self.dump()
        words = message(tmp_path, count, tokens if known else None)
        assert "layer 1 has counts that do not add up to tokens × top_k in rows 2, 5 (windows, counted from 0)" in words
        assert f"the first is {count[2, 1].sum()} where {tokens[2] * TOP_K} are expected" in words
        assert "There are such counts in layer 4 too" in words

    def test_drop_and_repair(self, tmp_path: Path) -> None:
        count, tokens = self.dump()
        _, dropped = read(tmp_path, count, tokens, on_bad="drop")
        expected = count.copy()
        expected[[2, 5], 1] = 0
        expected[7, 4] = 0
        np.testing.assert_array_equal(dropped.logical_count, expected)
        _, repaired = read(tmp_path, count, tokens, on_bad="repair")
        np.testing.assert_array_equal(
            repaired.logical_count.sum(axis=2), np.repeat(tokens[:, None] * TOP_K, LAYERS, axis=1)
        )
        own = count[2, 1] / count[2, 1].sum()
        np.testing.assert_allclose(repaired.logical_count[2, 1] / (tokens[2] * TOP_K), own, atol=1 / 80)

    def test_a_layer_without_tokens_is_wrong_only_if_the_source_says_that_there_were(self, tmp_path: Path) -> None:
        count, tokens = healthy()
        count[3, 2] = 0
        np.testing.assert_array_equal(read(tmp_path, count)[1].logical_count, count)
        assert "layer 2 has counts that do not add up" in message(tmp_path, count, tokens)
        _, load = read(tmp_path, count, tokens, on_bad="repair")
        assert load.logical_count[3, 2].sum() == tokens[3] * TOP_K

    def test_odd_sums_are_noted(self, tmp_path: Path) -> None:
        count = np.arange(1, 4 * LAYERS * EXPERTS + 1).reshape(4, LAYERS, EXPERTS)
        count[0, 0, 0] += 1
        result, load = read(tmp_path, count)
        np.testing.assert_array_equal(load.logical_count, count)
        assert "Counts of a layer in a row that are no multiple of top_k=2: 1;" in result.note

    def test_numbers_of_tokens_that_are_none(self, tmp_path: Path) -> None:
        count, tokens = healthy()
        assert "12 windows" in message(tmp_path, count, tokens[:5])
        assert "tokens are negative in row 4" in message(tmp_path, count, np.where(np.arange(12) == 4, -1, tokens))


class TestValues:
    """Counts that are none: negative ones, NaN, halves."""

    def dump(self) -> tuple[np.ndarray, np.ndarray]:
        count, tokens = healthy()
        count = count.astype(float)
        count[1, 0, 3] = -5
        count[4, 2, 0] = np.nan
        count[4, 2, 1] = np.inf
        count[8, 2, 7] = 0.5
        return count, tokens

    def test_the_gravest_is_named_and_that_there_are_others(self, tmp_path: Path) -> None:
        words = message(tmp_path, *self.dump())
        assert "layer 2 has counts that are not numbers in row 4 (windows, counted from 0); the first is nan" in words
        assert "3 other kinds of defects were found too." in words

    def test_drop_and_repair(self, tmp_path: Path) -> None:
        count, tokens = self.dump()
        clean, _ = healthy()
        bad = ([1, 4, 8], [0, 2, 2])
        result, dropped = read(tmp_path, count, tokens, on_bad="drop")
        expected = clean.copy()
        expected[bad] = 0
        np.testing.assert_array_equal(dropped.logical_count, expected)
        assert result.tags["bad_counts_dropped"] == "3"
        for words in ("not numbers in row 4", "not finite in row 4", "not whole numbers in row 8", "negative in row 1"):
            assert words in result.note
        result, repaired = read(tmp_path, count, tokens, on_bad="repair")
        sums = repaired.logical_count.sum(axis=2)
        np.testing.assert_array_equal(sums, np.repeat(tokens[:, None] * TOP_K, LAYERS, axis=1))
        good = np.ones(sums.shape, dtype=bool)
        good[bad] = False
        np.testing.assert_array_equal(repaired.logical_count[good], clean[good])

    def test_a_row_that_is_bad_in_every_layer_is_left_out(self, tmp_path: Path) -> None:
        count, _ = healthy()
        count[6, :, 0] = -1
        for on_bad in ("drop", "repair"):
            result, load = read(tmp_path, count, on_bad=on_bad)
            np.testing.assert_array_equal(load.logical_count, np.delete(count, 6, axis=0))
            assert result.metrics["windows"] == 11
        count[:, :, 0] = -1
        assert "has no rows left: layer 0 has counts that are negative" in message(tmp_path, count, on_bad="drop")

    def test_the_unsigned_wrap_of_a_small_counter(self, tmp_path: Path) -> None:
        count, tokens = healthy()
        wrapped = count.astype(np.uint64)
        wrapped[3, 1, 2] = 2**64 - 1
        assert "too large (above 2^53) in row 3" in message(tmp_path, wrapped, tokens)
        assert read(tmp_path, wrapped, tokens, on_bad="drop")[0].tags["bad_counts_dropped"] == "1"


@pytest.mark.parametrize("on_bad", ["error", "drop", "repair"])
def test_fewer_layers_or_experts_cannot_be_mended(tmp_path: Path, on_bad: str) -> None:
    count, _ = healthy()
    assert "layer 4 of the model missing" in message(tmp_path, count[:, :4], on_bad=on_bad)
    assert "has 15 experts in each of its layers; the model has 16" in message(
        tmp_path, count[:, :, :15], on_bad=on_bad
    )


def test_only_the_chosen_windows_are_judged(tmp_path: Path) -> None:
    count, tokens = healthy()
    count[2, 1, 0] = -1
    np.savez(tmp_path / "x.npz", logical_count=count, tokens=tokens, label=np.array(["day"] * 6 + ["night"] * 6))
    np.testing.assert_array_equal(run_table(tmp_path / "x.npz", SPEC, label="night")[1].logical_count, count[6:])
    with pytest.raises(BadInput, match="layer 1 has counts that are negative in row 2"):
        run_table(tmp_path / "x.npz", SPEC, label="day")


def test_defects_and_windows_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropped rows do not count as steps, whatever the size of a block."""
    count, tokens = healthy()
    padded = np.insert(count, [4] * 6, count[0], axis=0).astype(float)
    padded[1, 2, 3] = -1
    known = np.insert(tokens, [4] * 6, tokens[0])
    expected = count.copy()
    expected[1, 2] = 0
    for block in (1 << 24, 3 * LAYERS * EXPERTS * 8):
        monkeypatch.setattr("stages.collect.dump.BLOCK_BYTES", block)
        _, load = read(tmp_path, padded, known, on_bad="drop", window=3)
        np.testing.assert_array_equal(load.logical_count, expected.reshape(4, 3, LAYERS, EXPERTS).sum(axis=1))


@settings(deadline=None, max_examples=100, derandomize=True)
@given(st.data())
def test_apportioning_is_exact_and_within_one(data: st.DataObject) -> None:
    rows, experts = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 6))
    weights = data.draw(arrays(np.int64, (rows, experts), elements=st.integers(0, 2**40)))
    total = data.draw(arrays(np.int64, rows, elements=st.integers(0, 2**52)))
    found = apportion(total, weights)
    np.testing.assert_array_equal(found.sum(axis=1), total)
    assert (found >= 0).all()
    even = np.where(weights.sum(axis=1, keepdims=True) > 0, weights, 1)
    exact = even / even.sum(axis=1, keepdims=True) * total[:, None]
    assert (np.abs(found - exact) <= 1 + 1e-12 * total[:, None]).all()
