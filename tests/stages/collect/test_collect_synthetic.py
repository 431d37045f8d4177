"""Synthetic loads: exact sums, the asked-for skew in every window, and drift that moves experts and not the skew."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.collect.synthetic import generate
from stages.errors import BadInput

SIZE: dict[str, Any] = {
    "distribution": "lognormal", "skew": 1.0, "layers": 6, "experts": 64, "top_k": 4,
    "windows": 5, "tokens": 20_000, "drift": 0.2, "seed": 3,
}  # fmt: skip


def made(**other: Any) -> np.ndarray:
    return generate(**{**SIZE, **other})


def shares(count: np.ndarray) -> np.ndarray:
    """[T, L, E]: the share of each expert, the busiest first."""
    return -np.sort(-count, axis=2) / count.sum(axis=2, keepdims=True)


def likeness(count: np.ndarray, one: int, other: int) -> float:
    """Correlation of the log loads in two windows."""
    logs = np.log(count + 1)
    return float(np.corrcoef(logs[one].ravel(), logs[other].ravel())[0, 1])


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    distribution=st.sampled_from(["zipf", "lognormal"]),
    skew=st.sampled_from([0.0, 0.5, 1.0, 3.0, 50.0, 5000.0]),
    layers=st.integers(1, 3),
    experts=st.integers(1, 12),
    top_k=st.integers(1, 12),
    windows=st.integers(1, 4),
    tokens=st.integers(1, 300),
    drift=st.floats(0, 1),
    seed=st.integers(0, 2**40),
)
def test_sums_are_exact_and_no_token_goes_to_an_expert_twice(**options: Any) -> None:
    options["top_k"] = min(options["top_k"], options["experts"])
    count = generate(**options)
    assert count.dtype == np.int64
    assert count.shape == (options["windows"], options["layers"], options["experts"])
    assert (count.sum(axis=2) == options["tokens"] * options["top_k"]).all()
    assert count.min() >= 0
    assert count.max() <= options["tokens"]
    np.testing.assert_array_equal(count, generate(**options))


@pytest.mark.parametrize("other", [{"seed": 4}, {"drift": 0.3}, {"skew": 1.1}, {"distribution": "zipf"}])
def test_other_options_give_other_loads(other: dict[str, Any]) -> None:
    assert not np.array_equal(made(), made(**other))


def test_seeds_are_unrelated() -> None:
    assert abs(likeness(np.concatenate([made(windows=1), made(windows=1, seed=4)]), 0, 1)) < 0.2


@pytest.mark.parametrize("drift", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("exponent", [0.5, 0.8])
def test_zipf_has_its_shares_in_every_window(drift: float, exponent: float) -> None:
    expected = np.arange(1, 65) ** -exponent
    expected /= expected.sum()
    count = made(distribution="zipf", skew=exponent, tokens=1_000_000, drift=drift)
    np.testing.assert_allclose(shares(count), np.broadcast_to(expected, count.shape), rtol=0.02)


def test_lognormal_has_its_sigma() -> None:
    logs = np.log(made(layers=40, experts=256, tokens=1_000_000, skew=0.7))
    assert np.std(logs - logs.mean(axis=2, keepdims=True)) == pytest.approx(0.7, rel=0.03)


@pytest.mark.parametrize("distribution", ["zipf", "lognormal"])
def test_drift_moves_experts_and_keeps_the_skew(distribution: str) -> None:
    still, slow, fast, new = (
        made(distribution=distribution, skew=0.6, drift=drift, tokens=1_000_000) for drift in (0, 0.1, 0.4, 1)
    )
    assert likeness(still, 0, 4) > 0.999
    assert likeness(still, 0, 4) > likeness(slow, 0, 1) > likeness(slow, 0, 4) > likeness(fast, 0, 4)
    assert abs(likeness(new, 0, 1)) < 0.2
    for count in (still, slow, fast, new):
        np.testing.assert_allclose(shares(count)[1:], np.broadcast_to(shares(count)[:1], (4, 6, 64)), rtol=0.05)


def test_experts_move_apart_by_layer() -> None:
    assert len(set(made().argmax(axis=2)[0].tolist())) > 1


def test_what_no_expert_can_take_goes_to_the_others_in_proportion() -> None:
    """256 experts, top 8, Zipf 1: the first place would get 16 % of the counts, and can get 1/8."""
    count = made(distribution="zipf", layers=2, experts=256, top_k=8, tokens=1_000_000, drift=0.0)
    rest = 1 / np.arange(2, 257)
    expected = np.concatenate([[1 / 8], 7 / 8 * rest / rest.sum()])
    np.testing.assert_allclose(shares(count)[0, 0], expected, rtol=0.05)
    assert (shares(count)[:, :, 0] > 0.1245).all()


def test_more_experts_a_token_than_experts() -> None:
    with pytest.raises(BadInput, match=r"model\.top_k=65 is not possible: the model has 64 experts"):
        made(top_k=65)
