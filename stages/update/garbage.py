"""Python's garbage collector, kept from where it would be in the way."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Within the block nothing is collected: it may take longer than the update, and freeing GPU memory ends the
    recording of a CUDA graph. What is left from before is freed first."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
