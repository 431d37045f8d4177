"""What an expert makes of tokens, in arithmetic that is exact: the same bits on any device, in any batch and order.

`GatedMlp` is the expert itself, for tensors that it understands: y = W2 · (g · s(g) · u) with g, u = W13 · x (+ biases),
weights dequantised by their scales. Sums of products are where hardware rounds in an order of its own, so these are of
whole numbers below 2^53, for which float64 rounds nothing: each row of a matrix is taken relative to its largest weight
as a number of 26 to 40 bits, a token is whole numbers, and the 39 bits of an intermediate value go through W2 as three
numbers of 13. All else is elementwise. s(g) = (1 + g / (1 + |g|)) / 2 stands for the sigmoid, since exp is not the same
everywhere, and gate and up are the halves of W13 also where a checkpoint has their rows alternate.

`Ring` is for everything else, such as generated weights, whose bits are no sensible numbers: every row of every tensor
as 32-bit words, times odd 64-bit numbers that depend on token, tensor and column, summed modulo 2^64. Any one changed
word changes the outcome with certainty, since its change is below 2^32 and the factor is odd.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from stages.checksum import splitmix64
from stages.model import TensorSpec
from stages.update.quantisation import HUGE, Layout, Matrix, power_of_two, read_layout

ELEMENTS_AT_ONCE = {"cpu": 1 << 17, "cuda": 1 << 24}
"""64-bit numbers held at once: what stays in a CPU's cache, and what keeps a GPU busy."""
EXACT_BITS = 53
TOKEN_BITS = 7
LIMB_BITS = 13
LIMBS = 3
TINY = -900
"""Exponents of rows below this are taken as this one."""
LOW_35_BITS = (1 << 35) - 1

Tokens = npt.NDArray[np.int64]


class Arithmetic(Protocol):
    """`title`: what it does, for a reader."""

    title: str

    def outputs(self, tensors: Sequence[torch.Tensor], tokens: Tokens) -> torch.Tensor:
        """[N, D], 64-bit: what the expert with these tensors (one slot's) makes of each of the `tokens` [N]."""


def arithmetic_for(specs: Sequence[TensorSpec], seed: int, origin: str) -> Arithmetic:
    """`origin`: where the weights came from in the first place (`update.weights`)."""
    layout = None if origin == "synthetic" else read_layout(specs)
    return Ring(specs, seed) if layout is None else GatedMlp(layout, seed)


class Ring:
    title = "sums of all words of all tensors modulo 2^64"

    def __init__(self, specs: Sequence[TensorSpec], seed: int) -> None:
        self._seed = seed
        self._width = max(spec.shape[0] for spec in specs)

    def outputs(self, tensors: Sequence[torch.Tensor], tokens: Tokens) -> torch.Tensor:
        device = tensors[0].device
        out = torch.zeros((len(tokens), self._width), dtype=torch.int64, device=device)
        for k, tensor in enumerate(tensors):
            words = _words(tensor)
            rows, columns = words.shape
            factors = _factors(self._seed, tokens, k, columns, device)
            at_once = max(1, ELEMENTS_AT_ONCE[device.type] // columns)
            for first in range(0, rows, at_once):
                part = words[first : first + at_once]
                for n in range(len(tokens)):
                    out[n, first : first + len(part)] += (part * factors[n]).sum(dim=1)
        return out


def _words(tensor: torch.Tensor) -> torch.Tensor:
    """[rows, words]: the bytes of each row as int32, zero-padded to whole words."""
    rows = tensor.shape[0]
    data = tensor.reshape(rows, -1).view(torch.uint8)
    if data.shape[1] % 4 or data.storage_offset() % 4:
        padded = torch.zeros((rows, -(-data.shape[1] // 4) * 4), dtype=torch.uint8, device=data.device)
        padded[:, : data.shape[1]] = data
        data = padded
    return data.view(torch.int32)


def _factors(seed: int, tokens: Tokens, tensor: int, columns: int, device: torch.device) -> torch.Tensor:
    """[N, columns]: odd int64, a function of (seed, token, tensor, column)."""
    start = splitmix64(np.array([seed], dtype=np.int64).view(np.uint64) ^ np.uint64(tensor << 48))
    hashes = splitmix64(start ^ tokens.astype(np.uint64)) | np.uint64(1)
    hashed = torch.from_numpy(hashes.view(np.int64)).to(device)[:, None]
    column = torch.arange(columns, dtype=torch.int64, device=device).mul_(2).add_(1)
    mixed = hashed * column
    mixed ^= (mixed >> 29) & LOW_35_BITS
    return (mixed * hashed) | 1


class GatedMlp:
    title = "the experts' gated MLP, dequantised, in exact sums"

    def __init__(self, layout: Layout, seed: int) -> None:
        self._layout = layout
        self._seed = seed

    def outputs(self, tensors: Sequence[torch.Tensor], tokens: Tokens) -> torch.Tensor:
        w13, w2 = self._layout.w13, self._layout.w2
        factors = _factors(self._seed, tokens, 0, w13.columns, tensors[0].device)
        whole = ((factors >> 8) & ((2 << TOKEN_BITS) - 2)) - ((1 << TOKEN_BITS) - 1)  # odd, from -127 to 127
        hidden = _product(w13, tensors, [whole.to(torch.float64)], TOKEN_BITS) * 2.0**-TOKEN_BITS
        hidden = _biased(hidden, w13, tensors)
        gate, up = hidden.chunk(2, dim=1)
        switch = (gate / (gate.abs() + 1.0) + 1.0) * 0.5
        inner = (gate * switch * up).nan_to_num_(nan=0.0, posinf=HUGE, neginf=-HUGE).clamp_(-HUGE, HUGE)
        exponent = _exponent(inner.abs().amax(dim=1, keepdim=True))
        limbs = _limbs(inner * power_of_two(LIMBS * LIMB_BITS - exponent))
        out = _product(w2, tensors, limbs, LIMB_BITS) * power_of_two(exponent - LIMBS * LIMB_BITS)
        return _biased(out, w2, tensors)


def _biased(values: torch.Tensor, matrix: Matrix, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    return values if matrix.bias is None else values + tensors[matrix.bias].to(torch.float64)


def _limbs(values: torch.Tensor) -> list[torch.Tensor]:
    """Whole numbers of LIMB_BITS bits each, most significant first, that make up `values` of LIMBS times as many."""
    rest = values.round()
    limbs = []
    for place in reversed(range(LIMBS)):
        unit = 2.0 ** (place * LIMB_BITS)
        limbs.append((rest / unit).round())
        rest = rest - limbs[-1] * unit
    return limbs


def _product(matrix: Matrix, tensors: Sequence[torch.Tensor], limbs: list[torch.Tensor], bits: int) -> torch.Tensor:
    """[N, rows]: the matrix times vectors, given as limbs `[N, columns]` of whole numbers of at most `bits` bits."""
    device = limbs[0].device
    weight_bits = EXACT_BITS - bits - math.ceil(math.log2(matrix.columns))
    vectors = torch.cat(limbs).T.contiguous()
    count = len(limbs[0])
    out = torch.empty((count, matrix.rows), dtype=torch.float64, device=device)
    at_once = max(1, ELEMENTS_AT_ONCE[device.type] // matrix.columns)
    for first in range(0, matrix.rows, at_once):
        stop = min(matrix.rows, first + at_once)
        weights = matrix.weights(tensors, first, stop)
        exponent = _exponent(weights.abs().amax(dim=1))
        weights *= power_of_two(weight_bits - exponent)[:, None]
        sums = (weights.round_() @ vectors).T.reshape(len(limbs), count, stop - first) + 0.0  # no negative zeros
        total = sums[0]
        for place in range(1, len(limbs)):
            total = total * 2.0**LIMB_BITS + sums[place]
        out[:, first:stop] = total * power_of_two(exponent - weight_bits)
    return out


def _exponent(values: torch.Tensor) -> torch.Tensor:
    """int64 e with |value| < 2^e, the least for normal numbers, at least TINY."""
    return (((values.view(torch.int64) >> 52) & 0x7FF) - 1022).clamp_(min=TINY)
