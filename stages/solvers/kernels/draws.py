"""Random numbers of the kernels: xorshift64 (Marsaglia, 2003) on a state of one uint64 that is not 0."""

from __future__ import annotations

import numpy as np

from stages.solvers.kernels.compiled import Words, inner


@inner
def draw(state: Words) -> np.uint64:
    """The next 64 bits."""
    x = state[0]
    x ^= x << np.uint64(13)
    x ^= x >> np.uint64(7)
    x ^= x << np.uint64(17)
    state[0] = x
    return x


@inner
def below(state: Words, n: int) -> int:
    """A whole number from 0 to n - 1."""
    return int((draw(state) >> np.uint64(33)) % np.uint64(n))


@inner
def fraction(state: Words) -> float:
    """A number from 0 up to 1."""
    return float(draw(state) >> np.uint64(11)) * (1.0 / 9007199254740992.0)
