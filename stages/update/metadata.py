"""Which expert sits in which slot right now, as engines keep it: one object a process, its tensor updated in place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from stages.errors import BadInput


@dataclass
class ExpertLocationMetadata:
    """`physical_to_logical_map`: an integer tensor `[layers, P]`, indexed by the engine's layer ids, on any device.

    `ep_size`: the ranks that the P slots divide over. CUDA graphs hold the tensor, so its storage never changes.
    """

    physical_to_logical_map: torch.Tensor
    ep_size: int

    def __post_init__(self) -> None:
        shape, dtype = list(self.physical_to_logical_map.shape), self.physical_to_logical_map.dtype
        if len(shape) != 2 or dtype.is_floating_point or dtype.is_complex or dtype == torch.bool:
            raise BadInput(
                f"physical_to_logical_map is a {dtype} tensor of shape {shape}; integers [layers, slots] were expected."
            )
        if self.ep_size < 1 or shape[1] % self.ep_size:
            raise BadInput(f"{shape[1]} slots do not divide evenly over ep_size={self.ep_size} ranks.")

    @property
    def num_layers(self) -> int:
        return self.physical_to_logical_map.shape[0]

    @property
    def num_physical_experts(self) -> int:
        return self.physical_to_logical_map.shape[1]

    @property
    def num_local_physical_experts(self) -> int:
        return self.num_physical_experts // self.ep_size

    def check_successor(self, new: ExpertLocationMetadata) -> None:
        """Raise `BadInput` unless `new` describes the same slots and ranks as this one."""
        if new.ep_size != self.ep_size:
            raise BadInput(f"ep_size is {self.ep_size} now and {new.ep_size} in the new metadata; it must agree.")
        if new.physical_to_logical_map.shape != self.physical_to_logical_map.shape:
            raise BadInput(
                f"physical_to_logical_map has shape {list(self.physical_to_logical_map.shape)} now and "
                f"{list(new.physical_to_logical_map.shape)} in the new metadata; it must agree."
            )

    def take(self, maps: npt.NDArray[np.int64], layer_ids: Sequence[int]) -> None:
        """Take over `maps` `[n, P]` as the rows `layer_ids` `[n]`, in the tensor that is there."""
        rows = torch.from_numpy(maps).to(self.physical_to_logical_map)
        for layer_id, row in zip(layer_ids, rows, strict=True):
            self.physical_to_logical_map[layer_id].copy_(row)


_current: ExpertLocationMetadata | None = None


def get_global_expert_location_metadata() -> ExpertLocationMetadata | None:
    """The metadata of this process; None before it is set."""
    return _current


def set_global_expert_location_metadata(metadata: ExpertLocationMetadata | None) -> None:
    global _current
    _current = metadata
