"""Functions that numba compiles at their first call; the machine code is kept for the next process."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

Function = TypeVar("Function", bound=Callable[..., object])


def compiled(function: Function) -> Function:
    """`function` over arrays and numbers, as machine code.

    The code is cached beside its module, or in the user's cache folder where that cannot be written; where neither
    can, each process compiles anew. Importing numba takes half a second: import a module that uses this when needed.
    """
    from numba import njit

    try:
        return cast("Function", njit(cache=True)(function))
    except RuntimeError:  # numba found no folder that it may write
        return cast("Function", njit(function))
