"""The compiled parts of the search. Import nothing heavy here at the top: numba takes a second."""

from __future__ import annotations

import pickle
from shutil import rmtree

BROKEN = (OSError, EOFError, pickle.UnpicklingError, AttributeError, ImportError, IndexError, KeyError, ValueError)
"""What reading a cache that a crash or a full disk left behind can end with, and writing one."""


def ready() -> None:
    """Have every kernel compiled, or taken from the cache, so that no later call pays for it.

    One process at a time: the others wait, and then find the cache filled.
    """
    from stages.solvers.kernels.compiled import cache_folder, freeze, frozen, without_cache

    if frozen():
        return
    folder = cache_folder()
    if folder is None:
        _call_each()
    else:
        from filelock import FileLock

        with FileLock(folder.with_suffix(".lock")):
            try:
                _call_each()
            except BROKEN:
                rmtree(folder, ignore_errors=True)
                without_cache()
                _call_each()
    freeze()


def _call_each() -> None:
    """The smallest placement there is, by each kernel that Python calls, with the types that the search uses."""
    import numpy as np

    from stages.solvers.kernels.approach import approach
    from stages.solvers.kernels.scratch import greedy_counts, improve

    load, capacity = np.ones(2), np.ones(2, np.int64)
    counts, start, random = np.ones(2, np.int32), np.array([[0], [1]], np.int32), np.ones(1, np.uint64)
    greedy_counts(load, 2, 2, counts)
    improve(
        load, capacity, 2, 1.0, 1, 1, random, np.arange(2), counts, counts.copy(), start.copy(), np.ones(2),
        np.zeros(2, np.int64),
    )  # fmt: skip
    approach(
        load, capacity, 2, np.ones((2, 2), np.float32), start, 1.0, 0.0, random, 1, np.ones(2), np.ones(2),
        np.zeros(2, np.int64), np.zeros((2, 2, 1), np.int32),
    )  # fmt: skip
