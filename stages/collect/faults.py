"""Counts that no recorder can have meant, found all at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

MOST = 2**53
"""Loads are also used as floats, which hold every whole number up to this one."""


@dataclass(frozen=True)
class Fault:
    """`what` is wrong with the values where `where` (their shape) is true."""

    what: str
    where: npt.NDArray[np.bool_]


def first_fault(values: npt.NDArray[np.generic]) -> Fault | None:
    """The first kind of fault in values that must be whole numbers of at least 0; None when they are."""
    return next(iter(all_faults(values)), None)


def all_faults(values: npt.NDArray[np.generic]) -> list[Fault]:
    """Every kind of fault in such values, the gravest first; a value may be both negative and not whole."""
    if values.dtype.kind not in "iufO":
        return [Fault("not numbers", np.ones(values.shape, dtype=bool))] if values.size else []
    numbers: npt.NDArray[Any] = as_floats(values) if values.dtype.kind == "O" else values
    if numbers.dtype.kind in "iu" and numbers.size and numbers.min() >= 0 and numbers.max() <= MOST:
        return []
    kinds = [("negative", numbers < 0), ("too large (above 2^53)", numbers > MOST)]
    if numbers.dtype.kind == "f":
        finite = np.isfinite(numbers)
        kinds = [
            ("not numbers", np.isnan(numbers)),
            ("not finite", np.isinf(numbers)),
            ("not whole numbers", finite & (numbers != np.floor(numbers))),
            *((what, finite & where) for what, where in kinds),
        ]
    return [Fault(what, where) for what, where in kinds if where.any()]


def as_floats(values: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
    """Python objects as floats, in the same shape; what is no number becomes NaN."""
    flat = [_number(value) for value in values.ravel().tolist()]
    return np.array(flat, dtype=np.float64).reshape(values.shape)


def as_integers(values: npt.NDArray[np.generic]) -> npt.NDArray[np.int64]:
    """Values in which `first_fault` found nothing, as int64."""
    numbers = as_floats(values) if values.dtype.kind == "O" else values
    return numbers.astype(np.int64)


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return float("nan")
    return float(str(value))  # and not float(value), which raises on whole numbers above 10^308
