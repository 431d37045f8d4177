"""What a model config says of layers, experts and tensors, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from stages.errors import BadInput
from stages.model import ITEMSIZE, ModelSpec, TensorSpec

TENSORS = [TensorSpec("w13", [10, 4], "bfloat16"), TensorSpec("scale", [3], "float32")]


def test_item_sizes_are_those_of_torch() -> None:
    assert {name: getattr(torch, name).itemsize for name in ITEMSIZE} == ITEMSIZE


@pytest.mark.parametrize(
    ("shape", "dtype", "nbytes"),
    [([10, 4], "bfloat16", 80), ([3], "float32", 12), ([2, 3, 5], "float8_e4m3fn", 30), ([1], "int64", 8)],
)
def test_bytes_of_a_tensor(shape: list[int], dtype: str, nbytes: int) -> None:
    assert TensorSpec("w", shape, dtype).nbytes == nbytes


@pytest.mark.parametrize(
    ("scale", "shapes", "expert_bytes"),
    [(1.0, [[10, 4], [3]], 92), (0.5, [[5, 4], [2]], 48), (0.31, [[4, 4], [1]], 36), (1e-6, [[1, 4], [1]], 12)],
)
def test_scale_shrinks_the_first_dimension_and_leaves_something(
    scale: float, shapes: list[list[int]], expert_bytes: int
) -> None:
    model = ModelSpec(tensors=TENSORS, scale=scale)
    assert [t.shape for t in model.scaled_tensors()] == shapes
    assert [(t.name, t.dtype) for t in model.scaled_tensors()] == [(t.name, t.dtype) for t in TENSORS]
    assert model.expert_bytes == expert_bytes
    assert [t.shape for t in model.tensors] == [[10, 4], [3]]


@pytest.mark.parametrize(
    ("first", "dense", "layers", "ids", "hidden"),
    [
        (0, [], 3, [0, 1, 2], 3),
        (3, [], 2, [3, 4], 5),
        (1, [2, 3, 5], 3, [1, 4, 6], 7),
        (0, [0, 4], 2, [1, 2], 5),
        (0, [1, 1], 2, [0, 2], 3),
    ],
)
def test_layer_ids_skip_dense_layers(first: int, dense: list[int], layers: int, ids: list[int], hidden: int) -> None:
    model = ModelSpec(first_moe_layer=first, dense_layers=dense, tensors=TENSORS)
    assert model.layer_ids(layers) == ids
    assert model.hidden_layers(layers) == hidden


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"layers": 0}, "model.layers=0"),
        ({"experts": -1}, "model.experts=-1"),
        ({"num_groups": 0}, "model.num_groups=0"),
        ({"top_k": 0}, "model.top_k=0"),
        ({"scale": 0.0}, "model.scale=0.0"),
        ({"scale": 1.5}, "model.scale=1.5"),
        ({"scale": float("nan")}, "model.scale=nan"),
        ({"first_moe_layer": -1}, "model.first_moe_layer=-1"),
        ({"experts": 10, "num_groups": 4}, "model.num_groups=4 does not divide model.experts=10"),
        ({"tensors": []}, "model.tensors is empty"),
        ({"tensors": [TENSORS[0], TENSORS[0]]}, "names a tensor twice: w13, w13"),
    ],
)
def test_what_is_not_possible_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput) as caught:
        ModelSpec(**{"tensors": TENSORS, **values})
    assert message in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ([2], "float4", "w has dtype 'float4'; allowed are bfloat16, "),
        ([], "uint8", "w has shape []"),
        ([2, 0], "uint8", "w has shape [2, 0]"),
    ],
)
def test_tensors_that_cannot_be_are_refused(shape: list[int], dtype: str, message: str) -> None:
    with pytest.raises(BadInput) as caught:
        TensorSpec("w", shape, dtype)
    assert message in str(caught.value)


@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan")])
def test_a_share_of_a_step_is_from_0_to_1(fraction: float) -> None:
    with pytest.raises(BadInput, match=r"model\.moe_time_fraction=.* is not possible: allowed are 0 to 1\."):
        ModelSpec(tensors=TENSORS, moe_time_fraction=fraction)
