"""Putting something in the place of bad counts: what the layer's good rows say, in the amount that the row should have."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]


def apportion(total: npt.NDArray[np.int64], weights: npt.NDArray[np.int64]) -> Counts:
    """int64 [N, E]: each `total` [N] divided in proportion to `weights` [N, E], by largest remainders, so that the sums
    are exact; evenly where all weights are 0."""
    shares = np.where(weights.sum(axis=1, keepdims=True) > 0, weights, 1).astype(np.float64)
    exact = shares / shares.sum(axis=1, keepdims=True) * total[:, None]
    whole = np.floor(exact).astype(np.int64)
    missing = total - whole.sum(axis=1)
    order = np.argsort(whole - exact, axis=1, kind="stable")  # the largest remainder first
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.arange(weights.shape[1])[None], axis=1)
    whole += rank < missing[:, None]
    whole[np.arange(len(whole)), weights.argmax(axis=1)] += total - whole.sum(axis=1)  # what rounding left, if anything
    return whole


def pay(count: Counts, owed: npt.NDArray[np.int64]) -> Counts:
    """[T, L, E]: `count` with what is owed [T, L] to a layer, divided over its experts as all its good rows are."""
    window, layer = np.nonzero(owed)
    if len(window):
        good = count.sum(axis=0)
        count = count.copy()
        count[window, layer] += apportion(owed[window, layer], good[layer])
    return count
