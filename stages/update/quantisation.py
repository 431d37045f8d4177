"""An expert's tensors as matrices of numbers, whatever their quantisation.

Understood are float weights, fp8 ones with scales for blocks, rows or whole matrices, and MXFP4 ones with a scale byte
for some values of a row; each with or without a bias.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch

from stages.model import TensorSpec

HUGE = 2.0**500
"""Stands for infinity."""
FLOATS = ("float16", "bfloat16", "float32", "float64")
FP8 = ("float8_e4m3fn", "float8_e5m2")
FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""E2M1 of the OCP Microscaling Formats (MX) Specification 1.0, without sign; the low half of a byte comes first."""


@dataclass(frozen=True)
class Matrix:
    """A matrix of the expert, by the places of its tensors among those of a slot. `halves`: how many parts of its rows
    have scales of their own."""

    weight: int
    scale: int | None
    bias: int | None
    rows: int
    columns: int
    halves: int = 1

    def weights(self, tensors: Sequence[torch.Tensor], first: int, stop: int) -> torch.Tensor:
        """[stop - first, columns], float64, dequantised."""
        values = _decoded(tensors[self.weight][first:stop])
        if self.scale is not None:
            scales = self._scales(tensors[self.scale], first, stop)
            block = -(-self.columns // scales.shape[1])
            if self.columns % block:
                values = values * scales.repeat_interleave(block, dim=1)[:, : self.columns]
            else:
                values = (values.view(len(values), -1, block) * scales[:, :, None]).view(len(values), -1)
        return values.nan_to_num_(nan=0.0, posinf=HUGE, neginf=-HUGE)

    def _scales(self, scale: torch.Tensor, first: int, stop: int) -> torch.Tensor:
        """[stop - first, blocks of columns]: the scales of these rows."""
        per_half = self.rows // self.halves
        scales = scale.reshape(scale.shape[0], -1)
        scale_rows = scales.shape[0] // self.halves
        row = torch.arange(first, stop, device=scale.device)
        scales = scales[row // per_half * scale_rows + row % per_half // -(-per_half // scale_rows)]
        if scales.dtype == torch.uint8:  # E8M0
            return power_of_two(scales.to(torch.int64) - 127)
        return scales.to(torch.float64)


def _decoded(weight: torch.Tensor) -> torch.Tensor:
    """[rows, columns], float64, of its own memory; a byte is two numbers of 4 bits, or one of 8."""
    if weight.itemsize > 1:
        return weight.to(torch.float64, copy=True)
    numbers = _numbers(weight.dtype, weight.device)
    return numbers[weight.view(torch.uint8).to(torch.int32)].flatten(1)


@cache
def _numbers(dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """[256] or [256, 2], float64: what each byte means."""
    codes = torch.arange(256, dtype=torch.int64)
    if dtype == torch.uint8:
        values = torch.tensor([*FP4, *(-value for value in FP4)], dtype=torch.float64)
        return torch.stack([values[codes & 15], values[codes >> 4]], dim=1).to(device)
    return codes.to(torch.uint8).view(dtype).to(torch.float32).to(torch.float64).to(device)


def power_of_two(exponent: torch.Tensor) -> torch.Tensor:
    """2^exponent in float64, for exponents (int64) of normal numbers."""
    return ((exponent + 1023) << 52).view(torch.float64)


@dataclass(frozen=True)
class Layout:
    """The tensors of a slot as matrices: w13 `[2 · I, H]`, gate over up, and w2 `[H, I]`."""

    w13: Matrix
    w2: Matrix


def read_layout(specs: Sequence[TensorSpec]) -> Layout | None:
    """None where the tensors are not those of a gated MLP in a known quantisation, or where there are others."""
    places = {spec.name: place for place, spec in enumerate(specs)}
    found = [_read_matrix(specs, places, name) for name in ("w13", "w2")]
    w13, w2 = found
    if w13 is None or w2 is None or places:
        return None
    return Layout(w13, w2) if (w13.rows, w13.columns) == (2 * w2.columns, w2.rows) else None


def _read_matrix(specs: Sequence[TensorSpec], places: dict[str, int], name: str) -> Matrix | None:
    """The matrix `name`, whose tensors are taken out of `places`."""
    weight = places.pop(f"{name}_weight", None)
    if weight is None or len(specs[weight].shape) != 2:
        return None
    scales = [places.pop(key) for key in (f"{name}_weight_scale_inv", f"{name}_weight_scale") if key in places]
    bias = places.pop(f"{name}_bias", None)
    rows, columns = specs[weight].shape
    dtype = specs[weight].dtype
    if dtype == "uint8":
        columns *= 2
    if bias is not None and (specs[bias].shape != [rows] or specs[bias].dtype not in FLOATS):
        return None
    if not scales:
        return Matrix(weight, None, bias, rows, columns) if dtype in (*FLOATS, *FP8) else None
    scale = specs[scales[0]]
    if len(scales) > 1 or not _is_scaled_by(dtype, scale.dtype):
        return None
    scale_rows, scale_columns = scale.shape[0], math.prod(scale.shape[1:])
    halves = 2 if name == "w13" and scale_rows % 2 == 0 else 1
    fits = _blocks(rows // halves, scale_rows // halves) and _blocks(columns, scale_columns)
    return Matrix(weight, scales[0], bias, rows, columns, halves) if fits else None


def _is_scaled_by(weight: str, scale: str) -> bool:
    """MXFP4 weights have scale bytes (E8M0), fp8 weights have floats."""
    return scale == "uint8" if weight == "uint8" else weight in FP8 and scale in FLOATS


def _blocks(size: int, scales: int) -> bool:
    """Do `scales` blocks of equal size, the last one perhaps shorter, cover `size` values?"""
    return -(-size // -(-size // scales)) == scales
