"""What the pipeline needs to know of a model: its MoE layers, its experts, and the tensors of one expert."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import count, islice

from stages.errors import BadInput

ITEMSIZE = {
    "uint8": 1, "int8": 1, "float8_e4m3fn": 1, "float8_e5m2": 1, "float8_e8m0fnu": 1,
    "int16": 2, "float16": 2, "bfloat16": 2,
    "int32": 4, "float32": 4, "int64": 8, "float64": 8,
}  # fmt: skip
"""Bytes an element, of the dtypes that an expert's tensors may have (torch's names)."""


@dataclass
class TensorSpec:
    """One tensor of one expert, as it lies in a slot."""

    name: str
    shape: list[int]
    dtype: str

    def __post_init__(self) -> None:
        if self.dtype not in ITEMSIZE:
            raise BadInput(
                f"model.tensors: {self.name} has dtype {self.dtype!r}; allowed are {', '.join(sorted(ITEMSIZE))}."
            )
        if not self.shape or min(self.shape) < 1:
            raise BadInput(f"model.tensors: {self.name} has shape {self.shape}; every dimension must be at least 1.")

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEMSIZE[self.dtype]


@dataclass
class ModelSpec:
    """A model, as far as the pipeline needs to know it.

    name:              for people
    layers:            MoE layers (L); null: the loads decide
    experts:           logical experts in each of them (E); null: the loads decide
    num_groups:        groups of experts that routing is limited to
    top_k:             experts that each token goes to
    first_moe_layer:   the engine's number of the first MoE layer
    dense_layers:      the engine's numbers of dense layers after it
    scale:             shrinks the first dimension of every tensor, so that a laptop can hold the weights
    moe_time_fraction: the share of a step that the busiest GPU's expert load decides, where all have the same to do
    tensors:           the tensors of one expert, like [{name: w2_weight, shape: [64, 32], dtype: bfloat16}]
    """

    name: str = "custom"
    layers: int | None = None
    experts: int | None = None
    num_groups: int = 1
    top_k: int | None = None
    first_moe_layer: int = 0
    dense_layers: list[int] = field(default_factory=list)
    scale: float = 1.0
    moe_time_fraction: float = 0.5
    tensors: list[TensorSpec] = field(default_factory=list)

    def __post_init__(self) -> None:
        for key in ("layers", "experts", "num_groups", "top_k"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise BadInput(f"model.{key}={value} is not possible: it must be at least 1.")
        if not 0 < self.scale <= 1:
            raise BadInput(f"model.scale={self.scale} is not possible: it must be above 0 and at most 1.")
        if not 0 <= self.moe_time_fraction <= 1:
            raise BadInput(f"model.moe_time_fraction={self.moe_time_fraction} is not possible: allowed are 0 to 1.")
        if self.first_moe_layer < 0:
            raise BadInput(f"model.first_moe_layer={self.first_moe_layer} must not be negative.")
        if self.experts is not None and self.experts % self.num_groups:
            raise BadInput(f"model.num_groups={self.num_groups} does not divide model.experts={self.experts} evenly.")
        if not self.tensors:
            raise BadInput("model.tensors is empty: name at least one tensor of an expert, with its shape and dtype.")
        names = [tensor.name for tensor in self.tensors]
        if len(set(names)) < len(names):
            raise BadInput(f"model.tensors names a tensor twice: {', '.join(names)}.")

    def scaled_tensors(self) -> list[TensorSpec]:
        """The tensors of one expert as they are held: the first dimension times `scale`, rounded up."""
        return [
            TensorSpec(t.name, [max(1, math.ceil(t.shape[0] * self.scale)), *t.shape[1:]], t.dtype)
            for t in self.tensors
        ]

    @property
    def expert_bytes(self) -> int:
        """Bytes of all (scaled) tensors of one expert."""
        return sum(tensor.nbytes for tensor in self.scaled_tensors())

    def layer_ids(self, layers: int) -> list[int]:
        """[L]: the engine's layer id of each MoE layer."""
        return moe_layer_ids(layers, self.first_moe_layer, self.dense_layers)

    def hidden_layers(self, layers: int) -> int:
        """Layers of the whole model, dense ones included, given its `layers` MoE layers."""
        return max([*self.layer_ids(layers), *self.dense_layers]) + 1


def moe_layer_ids(layers: int, first_moe_layer: int, dense_layers: list[int]) -> list[int]:
    """[L]: the engine's layer ids of `layers` MoE layers that begin at `first_moe_layer` and skip `dense_layers`."""
    dense = set(dense_layers)
    ids = (layer for layer in count(first_moe_layer) if layer not in dense)
    return list(islice(ids, layers))
