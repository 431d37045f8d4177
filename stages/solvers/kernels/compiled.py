"""How kernels are compiled: by numba, once a machine, into a cache that concurrent runs can share.

numba's own cache lies beside the source or in one folder for all, which an installation may not let us write, and there
two processes that hold different code can mix an index of one with machine code of the other. So the folder is named by
all that the machine code depends on: what is in it is always the same, whoever wrote it, and numba puts each file in
its place at once. It is the user's own (a cache is code): below `NUMBA_CACHE_DIR` or `XDG_CACHE_HOME` where these are
set, else below `~/.cache`, else in the folder for temporary files. Where none can be written, each start compiles.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import llvmlite.binding
import numba
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Experts = npt.NDArray[np.int32]
"""Logical experts, or how many replicas each has."""
Held = npt.NDArray[np.int16]
"""[R, E]: how many slots of each rank hold each expert."""
Words = npt.NDArray[np.uint64]

_KERNELS: list[Any] = []
_FROZEN: list[bool] = []

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """A kernel that Python calls: compiled at its first call, or taken from the cache, and run without the GIL."""
    return _compile(function)


def inner(function: F) -> F:
    """A function that kernels alone call: Python's way in is left out, which halves the time to compile it."""
    return _compile(function, no_cpython_wrapper=True, no_cfunc_wrapper=True)


def _compile(function: F, **options: bool) -> F:
    folder = cache_folder()
    config: Any = numba.config
    before = config.CACHE_DIR
    config.CACHE_DIR = str(folder or "")  # numba reads it here and now, for this function alone
    try:
        jit: Any = numba.njit
        kernel = jit(cache=folder is not None, nogil=True, error_model="numpy", **options)(function)
    finally:
        config.CACHE_DIR = before
    _KERNELS.append(kernel)
    return cast("F", kernel)


def without_cache() -> None:
    """Compile from here on without reading or writing the cache."""
    for kernel in _KERNELS:
        if hasattr(kernel, "_cache"):
            kernel._cache.disable()


def freeze() -> None:
    """Compile nothing from here on: a call with other types than the kernels were made for is an error at once."""
    for kernel in _KERNELS:
        if getattr(kernel, "signatures", None):  # those inside another were taken with it from the cache
            kernel.disable_compile()
    _FROZEN.append(True)


def frozen() -> bool:
    return bool(_FROZEN)


@cache
def cache_folder() -> Path | None:
    """The folder of this code on this machine, made if need be; None where no place for it can be written."""
    for base in _bases():
        folder = base / "moesaic" / f"kernels-{_digest()}"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if folder.stat().st_uid != os.getuid():
                continue  # a stranger's: its code is not run
            with tempfile.TemporaryFile(dir=folder):
                return folder
        except OSError:
            continue
    return None


def _bases() -> list[Path]:
    given = [os.environ.get(name) for name in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME")]
    home = Path("~/.cache").expanduser()
    return [
        *(Path(path) for path in given if path),
        *([home] if home.is_absolute() else []),
        Path(tempfile.gettempdir()) / f"moesaic-{os.getuid()}",
    ]


def _digest() -> str:
    """Of the kernels' code, of what compiles it, and of the processor it is compiled for."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    versions = (numba.__version__, llvmlite.__version__, sys.version, np.__version__)
    processor = (llvmlite.binding.get_host_cpu_name(), llvmlite.binding.get_host_cpu_features().flatten())
    digest.update(repr((versions, processor)).encode())
    return digest.hexdigest()[:16]
