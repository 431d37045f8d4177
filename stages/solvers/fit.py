"""What windows of loads count for a placement: all alike, the last, a quantile, or the later the more."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from stages.solvers.options import PlaceOptions

Counts = npt.NDArray[np.int64]
Loads = npt.NDArray[np.int64] | npt.NDArray[np.float64]


def fitted_load(logical_count: Counts, options: PlaceOptions) -> Loads:
    """[L, E]: the load to place for, from `[T, L, E]` windows by `place.load`.

    Windows count by their share of a layer's tokens where their order or spread matters, so that a large window is
    not taken for a skewed one. `mean` is the sum of the tokens: whole numbers.
    """
    if options.load == "mean":
        return logical_count.sum(axis=0)
    if options.load == "last":
        return last_seen(logical_count).astype(np.float64)
    shares, seen = _shares(logical_count)
    if options.load == "quantile":
        shares[~seen] = np.nan
        empty = ~seen.any(axis=0)
        shares[:, empty] = 0.0
        return np.nanquantile(shares, options.load_quantile, axis=0)
    age = np.arange(len(shares))[::-1, None]
    weight = np.where(seen, 0.5 ** (age / options.load_half_life), 0.0)
    total = weight.sum(axis=0)
    return np.einsum("tl,tle->le", weight, shares) / np.where(total > 0, total, 1.0)[:, None]


def last_seen(logical_count: Counts) -> Counts:
    """[L, E]: of each layer, the last window in which it got tokens."""
    seen = logical_count.sum(axis=2) > 0
    last = len(seen) - 1 - seen[::-1].argmax(axis=0)
    return logical_count[last, np.arange(logical_count.shape[1])]


def _shares(logical_count: Counts) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """[T, L, E]: each expert's share of its layer's tokens in each window; [T, L]: whether there were any."""
    tokens = logical_count.sum(axis=2)
    return logical_count / np.where(tokens > 0, tokens, 1)[:, :, None], tokens > 0
