"""Compiled functions compute, also where there is no place to keep their code."""

from __future__ import annotations

import numpy as np

from stages.compiled import compiled


def test_without_a_place_for_a_cache_it_compiles_anew() -> None:
    """numba finds no folder for code that lies in no file, and says so at once."""
    scope: dict[str, object] = {}
    exec("def double(values):\n    return values * 2\n", scope)
    double = compiled(scope["double"])  # type: ignore[type-var]
    assert double(np.arange(3)).tolist() == [0, 2, 4]  # type: ignore[operator]
