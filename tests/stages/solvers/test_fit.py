"""What windows count, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from stages.solvers.fit import fitted_load
from stages.solvers.options import PlaceOptions

COUNTS = np.array([[[10, 0, 30]], [[0, 0, 0]], [[1, 1, 2]], [[60, 20, 20]]])
"""[T=4, L=1, E=3]; the second window got no tokens."""


def test_mean_is_the_sum_in_whole_numbers() -> None:
    found = fitted_load(COUNTS, PlaceOptions())
    assert found.dtype == np.int64
    assert found.tolist() == [[71, 21, 52]]


def test_last_is_the_last_window_with_tokens() -> None:
    assert fitted_load(COUNTS, PlaceOptions(load="last")).tolist() == [[60, 20, 20]]
    assert fitted_load(COUNTS[:2], PlaceOptions(load="last")).tolist() == [[10, 0, 30]]


def test_quantile_is_of_shares_in_windows_with_tokens() -> None:
    shares = np.array([[0.25, 0, 0.75], [0.25, 0.25, 0.5], [0.6, 0.2, 0.2]])
    for q in (0.0, 0.5, 0.9, 1.0):
        found = fitted_load(COUNTS, PlaceOptions(load="quantile", load_quantile=q))
        np.testing.assert_allclose(found, np.quantile(shares, q, axis=0)[None])


def test_ewma_halves_with_age() -> None:
    found = fitted_load(COUNTS, PlaceOptions(load="ewma", load_half_life=1.0))
    weights, shares = np.array([1 / 8, 1 / 2, 1]), np.array([[0.25, 0, 0.75], [0.25, 0.25, 0.5], [0.6, 0.2, 0.2]])
    np.testing.assert_allclose(found, (weights @ shares / weights.sum())[None])


@pytest.mark.parametrize("rule", ["mean", "last", "quantile", "ewma"])
def test_no_tokens_at_all(rule: str) -> None:
    found = fitted_load(np.zeros((3, 2, 4), dtype=np.int64), PlaceOptions(load=rule))
    assert found.tolist() == [[0] * 4] * 2


@pytest.mark.parametrize("rule", ["mean", "last", "quantile", "ewma"])
def test_one_window_is_itself(rule: str) -> None:
    found = fitted_load(COUNTS[:1], PlaceOptions(load=rule))
    np.testing.assert_allclose(found / found.sum(), [[0.25, 0, 0.75]])
