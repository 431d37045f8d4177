"""What all formats share: the map as a file holds it, and how an engine numbers the layers of a model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from stages.errors import BadInput
from stages.expert_map import EMPTY, ExpertMap, contiguous_map
from stages.model import moe_layer_ids


@dataclass(frozen=True)
class LayerNumbers:
    """The engine's layer ids of a model: its MoE layers begin at `first_moe_layer` and skip `dense_layers`."""

    first_moe_layer: int = 0
    dense_layers: tuple[int, ...] = ()

    def ids(self, layers: int) -> list[int]:
        """[L]: the engine's layer id of each of `layers` MoE layers."""
        return moe_layer_ids(layers, self.first_moe_layer, list(self.dense_layers))

    def hidden(self, layers: int) -> int:
        """Layers of the whole model, dense ones included."""
        return max([*self.ids(layers), *self.dense_layers]) + 1


@dataclass(frozen=True)
class Stored:
    """A placement as a file holds it.

    rows:      [rows, P] one row a layer of the file, -1 for an empty slot
    layer_ids: [rows] the engine's layer id of each row, where the file names them
    ranks:     how many ranks the slots are of, where the file says it
    experts:   E, where the file says it
    """

    rows: ExpertMap
    layer_ids: tuple[int, ...] | None = None
    ranks: int | None = None
    experts: int | None = None

    def moe_rows(self, layers: int | None, numbers: LayerNumbers, name: str) -> ExpertMap:
        """[L, P]: the rows of the model's MoE layers, in their order; `name` is how a message calls the file."""
        if layers is None:
            return self.rows
        wanted = numbers.ids(layers)
        if self.layer_ids is not None:
            places = {layer: row for row, layer in enumerate(self.layer_ids)}
            absent = [layer for layer in wanted if layer not in places]
            if absent:
                raise BadInput(
                    f"{name} has no layer {absent[0]}; the MoE layers of the model are {wanted[0]} to {wanted[-1]}."
                )
            return self.rows[[places[layer] for layer in wanted]]
        if len(self.rows) == layers:
            return self.rows
        if len(self.rows) == numbers.hidden(layers):
            return self.rows[wanted]
        dense = f", or {numbers.hidden(layers)} with its dense ones" if numbers.hidden(layers) != layers else ""
        raise BadInput(f"{name} has {len(self.rows)} layers; the model has {layers}{dense}.")


@dataclass(frozen=True)
class Outgoing:
    """A placement to be written: the [L, P] map, and what engines want to know besides. `layer_updates_per_iter`: how
    many layers TensorRT-LLM may balance anew in an iteration."""

    map: ExpertMap
    experts: int
    ranks: int = 1
    numbers: LayerNumbers = field(default_factory=LayerNumbers)
    layer_updates_per_iter: int = 0

    def with_dense_rows(self) -> ExpertMap:
        """[hidden layers, P]: with a trivial row (slot s holds expert s mod E) for each dense layer."""
        layers, slots = self.map.shape
        rows = contiguous_map(self.numbers.hidden(layers), self.experts, slots)
        rows[self.numbers.ids(layers)] = self.map
        return rows

    def refuse_empty_slots(self, engine: str) -> None:
        empty = np.argwhere(self.map == EMPTY)
        if len(empty):
            layer, slot = empty[0]
            raise BadInput(
                f"{engine} cannot hold empty slots, and layer {layer} slot {slot} of this placement is empty."
            )


def as_rows(path: Path, what: str, rows: Iterable[Any]) -> ExpertMap:
    """int64 [rows, P] of nested lists or an array of whole numbers."""
    try:
        found = np.array(rows)
    except ValueError:
        raise BadInput(f"{path}: {what} is not rectangular: its layers differ in their number of slots.") from None
    if found.ndim != 2 or not found.size or found.dtype.kind not in "iu":
        raise BadInput(
            f"{path}: {what} is {found.dtype} of shape {list(found.shape)}; whole numbers [layers, slots] are needed."
        )
    return found.astype(np.int64)
