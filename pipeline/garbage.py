"""Python's garbage collector, kept from going through what stays again and again."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

SELDOM = 100
"""Collections of the middle generation between two of everything; 10 is usual."""


@contextmanager
def seldom_collected() -> Iterator[None]:
    """Within the block everything is looked through seldom: Hydra, MLflow, torch and numba load half a million objects
    that stay, and to go through them took a tenth of a sweep. What waits to be freed meanwhile are a few MB a point."""
    before = gc.get_threshold()
    gc.set_threshold(before[0], before[1], max(before[2], SELDOM))
    try:
        yield
    finally:
        gc.set_threshold(*before)
