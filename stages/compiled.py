"""Functions that numba compiles at their first call; the machine code is kept for the next process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

Function = TypeVar("Function", bound=Callable[..., object])


def compiled(function: Function) -> Function:
    """`function` over arrays and numbers, as machine code.

    The code is cached beside its module, or in the user's cache folder where that cannot be written; where neither
    can, each process compiles anew. Importing numba takes half a second: import a module that uses this when needed.
    """
    return _compile(function)


def inner(function: Function) -> Function:
    """A function that compiled ones alone call, of the same module: without Python's way in, which halves the time it
    takes to compile."""
    return _compile(function, no_cpython_wrapper=True, no_cfunc_wrapper=True)


def _compile(function: Function, **options: Any) -> Function:
    from numba import njit

    try:
        return cast("Function", njit(cache=True, **options)(function))
    except RuntimeError:  # numba found no folder that it may write
        return cast("Function", njit(**options)(function))
