"""Loads with a known skew that drifts: which experts are popular changes over the windows, how skewed they are does not.

Each layer has a fixed profile of popularity, from its most to its least popular place: 1 / place^exponent (`zipf`), or
E draws of exp(sigma * N(0, 1)) (`lognormal`). Which expert is in which place follows from the order of one latent value
per expert, which moves from window to window by

    z' = sqrt(1 - drift^2) * z + drift * N(0, 1)

so that it stays N(0, 1) and the profile stays exactly what it was, however far the experts have moved: with a drift of
0 they keep their places, with 1 the windows are independent. The counts are a multinomial draw. A token goes to an
expert only once, so no place is more popular than 1 / top_k (what a steeper profile has above that, the other places
get in proportion), and no expert gets more than `tokens`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from stages.errors import BadInput

Floats = npt.NDArray[np.float64]
TINY = 1e-300
"""Stands for a popularity that underflowed, so that shares can still be divided."""


def generate(
    *,
    distribution: str,
    skew: float,
    layers: int,
    experts: int,
    top_k: int,
    windows: int,
    tokens: int,
    drift: float,
    seed: int,
) -> npt.NDArray[np.int64]:
    """int64 [T, L, E] in which every window and layer sums to `tokens * top_k`.

    `skew`: the exponent of `zipf`, the sigma of `lognormal`.
    """
    if top_k > experts:
        raise BadInput(f"model.top_k={top_k} is not possible: the model has {experts} experts (model.experts).")
    for_profile, for_places, for_counts = np.random.default_rng([seed, layers, experts]).spawn(3)
    profile = _without_repeats(_profile(distribution, skew, layers, experts, for_profile), top_k)
    popularity = _placed(profile, windows, drift, for_places)
    count = for_counts.multinomial(tokens * top_k, popularity)
    return _at_most(count, tokens, popularity, for_counts)


def _profile(distribution: str, skew: float, layers: int, experts: int, rng: np.random.Generator) -> Floats:
    """[L, E]: the share of each place of a layer, falling from left to right."""
    if distribution == "zipf":
        exponents = np.tile(-skew * np.log(np.arange(1, experts + 1)), (layers, 1))
    else:
        exponents = -np.sort(-skew * rng.standard_normal((layers, experts)), axis=1)
    weights = np.maximum(np.exp(exponents - exponents[:, :1]), TINY)
    return weights / weights.sum(axis=1, keepdims=True)


def _without_repeats(profile: Floats, top_k: int) -> Floats:
    """[L, E]: `profile` with no share above 1 / top_k; what is above goes to the places below in proportion."""
    most = 1 / top_k
    places = np.arange(profile.shape[1])
    below = np.cumsum(profile[:, ::-1], axis=1)[:, ::-1]
    # With the first n places at the most, the others share what is left; the first n for which that fits is right.
    scale = np.maximum(1 - places * most, 0) / below
    capped = np.argmax(profile * scale <= most * (1 + 1e-12), axis=1)[:, None]
    return np.where(places < capped, most, profile * np.take_along_axis(scale, capped, axis=1))


def _placed(profile: Floats, windows: int, drift: float, rng: np.random.Generator) -> Floats:
    """[T, L, E]: the popularity of each expert, in the place that its latent value gives it."""
    latent = rng.standard_normal((windows, *profile.shape))
    for window in range(1, windows):
        latent[window] = np.sqrt(1 - drift**2) * latent[window - 1] + drift * latent[window]
    popularity = np.empty_like(latent)
    np.put_along_axis(popularity, np.argsort(latent, axis=2), np.broadcast_to(profile, latent.shape), axis=2)
    return popularity


def _at_most(
    count: npt.NDArray[np.int64], tokens: int, popularity: Floats, rng: np.random.Generator
) -> npt.NDArray[np.int64]:
    """[T, L, E]: what an expert has above `tokens` is drawn again among the experts that have less."""
    while (excess := np.maximum(count - tokens, 0)).any():
        over = excess.any(axis=2)
        count = count - excess
        free = np.where(count[over] < tokens, popularity[over], 0.0)
        share = free / free.sum(axis=1, keepdims=True)
        count[over] += rng.multinomial(excess[over].sum(axis=1), share)
    return count
