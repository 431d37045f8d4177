"""Small experts in the quantisations that engines use. torch alone, so that GPU tests can use it too."""

from __future__ import annotations

import torch

from stages.model import TensorSpec

HIDDEN, INTER = 64, 96


def spec(name: str, shape: list[int], dtype: str) -> TensorSpec:
    return TensorSpec(name, shape, dtype)


KINDS = {
    "bfloat16": [
        spec("w13_weight", [2 * INTER, HIDDEN], "bfloat16"), spec("w2_weight", [HIDDEN, INTER], "bfloat16"),
    ],
    "float16 with biases": [
        spec("w13_weight", [2 * INTER, HIDDEN], "float16"), spec("w13_bias", [2 * INTER], "float32"),
        spec("w2_bias", [HIDDEN], "bfloat16"), spec("w2_weight", [HIDDEN, INTER], "float16"),
    ],
    "fp8 in blocks": [
        spec("w13_weight", [2 * INTER, HIDDEN], "float8_e4m3fn"), spec("w13_weight_scale_inv", [6, 2], "float32"),
        spec("w2_weight", [HIDDEN, INTER], "float8_e4m3fn"), spec("w2_weight_scale_inv", [2, 3], "float32"),
    ],
    "fp8 by row and by matrix": [
        spec("w13_weight", [2 * INTER, HIDDEN], "float8_e5m2"), spec("w13_weight_scale", [2], "float32"),
        spec("w2_weight", [HIDDEN, INTER], "float8_e4m3fn"), spec("w2_weight_scale", [HIDDEN, 1], "bfloat16"),
    ],
    "mxfp4": [
        spec("w13_weight", [2 * INTER, HIDDEN // 2], "uint8"), spec("w13_weight_scale", [2 * INTER, HIDDEN // 32], "uint8"),
        spec("w13_bias", [2 * INTER], "bfloat16"), spec("w2_weight", [HIDDEN, INTER // 2], "uint8"),
        spec("w2_weight_scale", [HIDDEN, INTER // 32], "uint8"), spec("w2_bias", [HIDDEN], "bfloat16"),
    ],
}  # fmt: skip


def expert(specs: list[TensorSpec], seed: int = 0) -> list[torch.Tensor]:
    """Weights as a trained expert may have them."""
    generator = torch.Generator().manual_seed(seed)
    tensors = []
    for one in specs:
        dtype = getattr(torch, one.dtype)
        if one.dtype == "uint8":
            low, high = (115, 125) if "scale" in one.name else (0, 256)
            tensors.append(torch.randint(low, high, one.shape, dtype=torch.uint8, generator=generator))
        elif "scale" in one.name:
            tensors.append((torch.rand(one.shape, generator=generator) * 1e-3 + 1e-4).to(dtype))
        else:
            size = 30.0 if one.dtype.startswith("float8") else 0.05
            tensors.append((torch.randn(one.shape, generator=generator) * size).to(dtype))
    return tensors
