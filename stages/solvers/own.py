"""A placement policy of one's own: `place.algorithm=module.function` names a function

    def policy(load, slots, topology) -> map

from [L, E] loads (float64), the number P of slots a layer and the `Topology` to an integer [L, P] map, in which slot s
is on rank s // (P / topology.ranks), every expert is held somewhere, and -1 leaves a slot empty.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stages.errors import BadInput
from stages.expert_map import ExpertMap, check_map
from stages.topology import Topology


def is_own(algorithm: str) -> bool:
    """Whether this is a dotted name rather than that of a shipped algorithm."""
    module, _, function = algorithm.rpartition(".")
    return bool(module) and all(part.isidentifier() for part in [*module.split("."), function])


def source_of(algorithm: str) -> Path:
    """The file of the policy's module, found without running that module; its content is part of the checkpoint's key."""
    module = algorithm.rpartition(".")[0]
    try:
        spec = find_spec(module)
    except ImportError:
        spec = None
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise BadInput(
            f"place.algorithm={algorithm}: there is no module {module}; install it, or name its folder in PYTHONPATH."
        )
    return Path(spec.origin)


def policy_of(algorithm: str, experts: int, slots: int, topology: Topology) -> Callable[[npt.NDArray[Any]], ExpertMap]:
    """The function, as one whose every result is a whole map. Raises `BadInput` if it cannot be had."""
    name = f"place.algorithm={algorithm}"
    module, _, function = algorithm.rpartition(".")
    try:
        policy = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise BadInput(f"{name} cannot be imported: {error}.") from error

    def solve(load: npt.NDArray[Any]) -> ExpertMap:
        found = np.asarray(policy(np.array(load, dtype=np.float64), slots, topology))
        if found.shape != (len(load), slots) or found.dtype.kind not in "iu":
            raise BadInput(
                f"{name} returns {found.dtype} of shape {list(found.shape)}; whole numbers of shape "
                f"{[len(load), slots]} are needed: the expert of every slot in each layer."
            )
        found = found.astype(np.int64)
        check_map(found, experts, topology.ranks, name)
        return found

    return solve
