"""From counts of slots to counts of experts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from stages.errors import BadInput
from stages.expert_map import EMPTY, ExpertMap


@dataclass(frozen=True)
class ToLogical:
    """Adds up the slots of each expert by the [L, P] map that was in place. `name`: what messages call the map."""

    map: ExpertMap
    experts: int
    name: str

    def __post_init__(self) -> None:
        wrong = np.argwhere((self.map < EMPTY) | (self.map >= self.experts))
        if len(wrong):
            layer, slot = wrong[0]
            raise BadInput(
                f"{self.name}: layer {layer} slot {slot} holds expert {self.map[layer, slot]}; "
                f"allowed are 0 to {self.experts - 1}, and -1 for an empty slot."
            )

    @cached_property
    def _order(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Columns of [T, L*P] by expert, where each expert begins among them, and which column of [T, L*E] it is."""
        layers = len(self.map)
        keys = (self.map + np.arange(layers)[:, None] * self.experts).ravel()
        held = np.flatnonzero(self.map.ravel() != EMPTY)
        order = held[np.argsort(keys[held], kind="stable")]
        cells, starts = np.unique(keys[order], return_index=True)
        return order, starts, cells

    def __call__(self, physical: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        """[T, L, E] of [T, L, P], in the same dtype; what an empty slot is said to have got is not counted."""
        order, starts, cells = self._order
        rows, layers, _ = physical.shape
        logical = np.zeros((rows, layers * self.experts), dtype=physical.dtype)
        logical[:, cells] = np.add.reduceat(physical.reshape(rows, -1)[:, order], starts, axis=1)
        return logical.reshape(rows, layers, self.experts)


def experts_of(expert_map: ExpertMap, known: int | None) -> int:
    """E: as the model says, or as many as the map holds."""
    return known if known is not None else int(expert_map.max()) + 1
