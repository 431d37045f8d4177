"""What is wrong with public dumps although all their counts are whole numbers: found per layer and row, never guessed.

A rule calls nothing bad that a working recorder can have meant, other than by a coincidence that its evidence excludes.
"""

from __future__ import annotations

from math import lgamma

import numpy as np
import numpy.typing as npt

from stages.collect.selection import Cells, Counts, middle

CERTAIN, CERTAIN_OF_A_LAYER = 40.0, 20.0
"""Nats of evidence: a router that works sends the tokens of one row, or of all rows, to the same experts with a
probability below exp(-this), were the experts alike."""
AGREEING = 2 / 3
"""The share of a row's layers that must agree about its tokens for the others to be wrong."""
FEWEST_VOTES = 3
"""… and at least so many of them, since two may agree by chance."""
FEWEST_REPEATS = 4
"""So many rows that repeat an earlier one are padding; fewer may be two requests alike."""
FEWEST_COUNTS = 64
"""Rows with fewer counts in all layers together may be alike by chance."""


def broken_router(count: Counts, top_k: int | None) -> tuple[Cells, npt.NDArray[np.float64]]:
    """[T, L] where experts 0 … k-1 got all tokens, as top-k over NaN chooses, and [T, L] how much evidence that is.

    `count`: [T, L, E]. Where `top_k` is not known, any number of experts up to half of them counts as k.
    """
    experts = count.shape[2]
    first = count[:, :, 0]
    if top_k is not None:
        if top_k >= experts:
            return np.zeros(first.shape, dtype=bool), np.zeros(first.shape)
        k = np.full(first.shape, top_k)
        alike = (count[:, :, :top_k] == first[:, :, None]).all(axis=2)
    else:
        k = (count > 0).sum(axis=2)
        alike = ((count == first[:, :, None]) == (np.arange(experts) < k[:, :, None])).all(axis=2)
        alike &= 2 * k <= experts
    found = (first > 0) & alike & (count.sum(axis=2) == first * k)
    ways = np.array([lgamma(experts + 1) - lgamma(n + 1) - lgamma(experts - n + 1) for n in range(experts + 1)])
    return found, np.where(found, first * ways[np.minimum(k, experts)], 0.0)


def expected_sums(
    sums: Counts, good: Cells, tokens: npt.NDArray[np.int64] | None, top_k: int | None
) -> npt.NDArray[np.int64]:
    """[T]: what the counts of each layer of a row must add up to, -1 where that is not known.

    `sums`: [T, L]. That is tokens × top_k where the source says its tokens; else what most of the layers that have
    tokens (and `good` counts) agree about, provided that it is a multiple of top_k.
    """
    unknown = np.full(len(sums), -1, dtype=np.int64)
    if top_k is None:
        return unknown
    if tokens is not None:
        return tokens * top_k
    voting = good & (sums > 0)
    voters = voting.sum(axis=1)
    usual = middle(sums, voting)
    agreeing = (voting & (sums == usual[:, None])).sum(axis=1)
    sure = (agreeing >= FEWEST_VOTES) & (agreeing >= AGREEING * voters) & (usual % top_k == 0)
    return np.where(sure, usual, unknown)


def wrong_sums(sums: Counts, expected: npt.NDArray[np.int64], *, tokens_known: bool) -> Cells:
    """[T, L] where the counts of a layer do not add up to `expected`. Where the source does not say its tokens, a
    layer without any was not recorded, and is not wrong."""
    wrong = (sums != expected[:, None]) & (expected >= 0)[:, None]
    return wrong if tokens_known else wrong & (sums > 0)


class Fingerprints:
    """Tells rows that are alike, by 64 bits of each."""

    def __init__(self, cells: int) -> None:
        self._weights = np.random.default_rng(0).integers(0, 2**63, cells, dtype=np.uint64) * np.uint64(2) + np.uint64(
            1
        )
        self._prints: list[npt.NDArray[np.uint64]] = []
        self._rows: list[npt.NDArray[np.int64]] = []

    def add(self, count: Counts, rows: npt.NDArray[np.int64]) -> None:
        """`count`: [T, L, E], `rows`: [T] their numbers. Rows with few counts, or as many for every expert, are no
        sign of anything and are not looked at."""
        flat = count.reshape(len(count), -1)
        telling = (flat.sum(axis=1) >= FEWEST_COUNTS) & (count.max(axis=2) > count.min(axis=2)).any(axis=1)
        mixed = (flat[telling].astype(np.uint64) * self._weights).sum(axis=1)
        self._prints.append(mixed)
        self._rows.append(rows[telling])

    def repeats(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Numbers of the rows that repeat an earlier one, and of those that they repeat; none where there are few."""
        if not self._prints:
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        prints, rows = np.concatenate(self._prints), np.concatenate(self._rows)
        _, first, inverse = np.unique(prints, return_index=True, return_inverse=True)
        again = np.flatnonzero(first[inverse] != np.arange(len(prints)))
        if len(again) < FEWEST_REPEATS:
            again = again[:0]
        return rows[again], rows[first[inverse[again]]]
