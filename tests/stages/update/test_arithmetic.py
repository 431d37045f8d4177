"""The arithmetic of the functional proof: right, the same bits in any batch and order, and moved by any changed bit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import conf
from stages.model import TensorSpec
from stages.synthetic import fill
from stages.update import arithmetic
from stages.update.arithmetic import GatedMlp, Ring, arithmetic_for
from stages.update.quantisation import read_layout
from tests.stages.update.cases import TENSORS
from tests.stages.update.experts import HIDDEN, INTER, KINDS, expert, spec

TOKENS = np.array([3, 0, 11, 4, 5])


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """On a busy machine threads wait longer for each other than such small sums take."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def mlp(kind: str) -> GatedMlp:
    layout = read_layout(KINDS[kind])
    assert layout is not None
    return GatedMlp(layout, seed=7)


def bits(values: torch.Tensor) -> torch.Tensor:
    return values.view(torch.int64)


def dequantised(tensors: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    """[rows, columns] of a matrix, element by element."""
    weight = tensors[f"{name}_weight"]
    scale = tensors.get(f"{name}_weight_scale_inv", tensors.get(f"{name}_weight_scale"))
    if weight.dtype != torch.uint8:
        values = weight.float().double()
    else:
        table = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
        table += [-value for value in table]
        rows = [[table[code] for byte in row for code in (byte & 15, byte >> 4)] for row in weight.tolist()]
        values = torch.tensor(rows, dtype=torch.float64)
    if scale is None:
        return values
    factors = 2.0 ** (scale.double() - 127) if scale.dtype == torch.uint8 else scale.double()
    factors = factors.reshape(len(factors), -1)
    rows, columns = (size // count for size, count in zip(values.shape, factors.shape, strict=True))
    return values * factors.repeat_interleave(rows, 0).repeat_interleave(columns, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_gated_mlp_is_what_is_computed(kind: str) -> None:
    tensors = expert(KINDS[kind])
    named = {one.name: tensor for one, tensor in zip(KINDS[kind], tensors, strict=True)}
    factors = arithmetic._factors(7, TOKENS, 0, HIDDEN, torch.device("cpu"))
    x = ((factors >> 8) % 256 // 2 * 2 - 127).double() / 128
    assert x.abs().max() < 1
    assert len(torch.unique(x)) > 100
    inner = x @ dequantised(named, "w13").T
    inner = inner + named["w13_bias"].double() if "w13_bias" in named else inner
    gate, up = inner[:, :INTER], inner[:, INTER:]
    out = (gate * up * (1 + gate / (1 + gate.abs())) / 2) @ dequantised(named, "w2").T
    out = out + named["w2_bias"].double() if "w2_bias" in named else out
    found = mlp(kind).outputs(tensors, TOKENS)
    assert (found - out).abs().max() < 1e-6 * out.abs().max()
    assert out.abs().min() > 0


@pytest.mark.parametrize("kind", [*KINDS, "ring"])
def test_the_same_bits_in_any_batch_slot_order_and_chunk(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    specs = KINDS.get(kind, TENSORS)
    tensors = expert(specs)
    way = Ring(specs, 7) if kind == "ring" else mlp(kind)
    expected = bits(way.outputs(tensors, TOKENS))
    assert len(torch.unique(expected[:, 0])) == len(TOKENS)
    order = np.array([4, 2, 0, 3, 1])
    assert torch.equal(bits(way.outputs(tensors, TOKENS[order])), expected[torch.from_numpy(order)])
    for n in range(len(TOKENS)):
        assert torch.equal(bits(way.outputs(tensors, TOKENS[n : n + 1]))[0], expected[n])
    many = np.concatenate([np.arange(20, 60), TOKENS])
    assert torch.equal(bits(way.outputs(tensors, many))[40:], expected)
    # in another slot, at any address
    slots = [torch.zeros((3, *tensor.shape), dtype=tensor.dtype) for tensor in tensors]
    for slot in range(3):
        for held, tensor in zip(slots, tensors, strict=True):
            held[slot] = tensor
        assert torch.equal(bits(way.outputs([held[slot] for held in slots], TOKENS)), expected)
    for at_once, count in ((1, 1), (700, 2), (1 << 22, 4)):
        monkeypatch.setitem(arithmetic.ELEMENTS_AT_ONCE, "cpu", at_once)
        torch.set_num_threads(count)
        assert torch.equal(bits(way.outputs(tensors, TOKENS)), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_other_seeds_are_other_tokens(kind: str) -> None:
    layout = read_layout(KINDS[kind])
    assert layout is not None
    tensors = expert(KINDS[kind])
    first, second = (GatedMlp(layout, seed).outputs(tensors, TOKENS) for seed in (0, 1))
    assert (first != second).all()


def flips(tensors: list[torch.Tensor], places: int) -> Iterator[tuple[int, int, int]]:
    """Each bit of a few elements of each tensor: (tensor, element, bit), flipped while the caller looks at it."""
    rng = np.random.default_rng(0)
    for k, tensor in enumerate(tensors):
        data = tensor.view(-1).view(torch.uint8).view(tensor.numel(), -1)
        for element in rng.choice(len(data), min(places, len(data)), replace=False).tolist():
            for bit in range(8 * data.shape[1]):
                data[element, bit // 8] ^= 1 << (bit % 8)
                yield k, element, bit
                data[element, bit // 8] ^= 1 << (bit % 8)


def sign_of_zero(one: TensorSpec, tensor: torch.Tensor, element: int, bit: int) -> bool:
    """Whether the bit is the sign of a weight that is zero."""
    value = tensor.view(-1)[element]
    if one.dtype != "uint8":
        return bit + 1 == 8 * tensor.itemsize and not value.float()
    return one.name.endswith("_weight") and bit % 4 == 3 and not (int(value) >> (bit - 3)) & 7


@pytest.mark.parametrize("kind", KINDS)
def test_one_changed_bit_of_a_weight_scale_or_bias_shows(kind: str) -> None:
    """… in the output of every token; the lowest bits of scales too."""
    tensors = expert(KINDS[kind])
    way = mlp(kind)
    expected = way.outputs(tensors, TOKENS)
    tried = 0
    for k, element, bit in flips(tensors, 5):
        found = way.outputs(tensors, TOKENS)
        same = (bits(found) == bits(expected)).all(dim=1)
        assert not same.any() or sign_of_zero(KINDS[kind][k], tensors[k], element, bit), (k, element, bit)
        tried += 1
    assert tried > 100
    assert torch.equal(bits(way.outputs(tensors, TOKENS)), bits(expected))


@pytest.mark.parametrize("specs", [TENSORS, [spec("a", [1, 7], "uint8"), spec("b", [9], "bfloat16")]])
def test_one_changed_bit_of_anything_shows_in_the_ring(specs: list[TensorSpec]) -> None:
    tensors = [torch.empty((1, *one.shape), dtype=getattr(torch, one.dtype)) for one in specs]
    for k, tensor in enumerate(tensors):
        fill(tensor, 3, np.array([0]), np.array([1]), k)
    slot = [tensor[0] for tensor in tensors]
    way = Ring(specs, 0)
    expected = way.outputs(slot, TOKENS)
    tried = 0
    for _ in flips(slot, 20):
        assert (way.outputs(slot, TOKENS) != expected).any(dim=1).all()
        tried += 1
    assert tried >= 8 * 16
    assert torch.equal(way.outputs(slot, TOKENS), expected)


@pytest.mark.parametrize("kind", [kind for kind, specs in KINDS.items() if any("scale" in one.name for one in specs)])
def test_scales_of_another_expert_show(kind: str) -> None:
    mine, other = expert(KINDS[kind], 0), expert(KINDS[kind], 1)
    way = mlp(kind)
    expected = way.outputs(mine, TOKENS)
    for k, one in enumerate(KINDS[kind]):
        if "scale" in one.name:
            mixed = [*mine[:k], other[k], *mine[k + 1 :]]
            assert (way.outputs(mixed, TOKENS) != expected).any(dim=1).all()
            doubled = [*mine[:k], other[k] + 1 if one.dtype == "uint8" else mine[k] * 2, *mine[k + 1 :]]
            assert (way.outputs(doubled, TOKENS) != expected).any(dim=1).all()


def test_weights_that_are_no_numbers_change_nothing_but_the_output() -> None:
    tensors = expert(KINDS["bfloat16"])
    way = mlp("bfloat16")
    expected = way.outputs(tensors, TOKENS)
    for value in (float("nan"), float("inf"), -float("inf"), 3e38):
        spoiled = [tensors[0].clone(), tensors[1].clone()]
        spoiled[0][5, 7], spoiled[1][3, 2] = value, value
        found = way.outputs(spoiled, TOKENS)
        assert (found != expected).any(dim=1).all()
        assert torch.equal(bits(way.outputs(spoiled, TOKENS[2:3]))[0], bits(found)[2])


def test_zero_matrices_have_outputs_too() -> None:
    tensors = [torch.zeros_like(tensor) for tensor in expert(KINDS["fp8 in blocks"])]
    assert not bits(mlp("fp8 in blocks").outputs(tensors, TOKENS)).any()


def shipped(model: str) -> list[TensorSpec]:
    values = yaml.safe_load((Path(conf.__file__).parent / "model" / f"{model}.yaml").read_text(encoding="utf-8"))
    return [TensorSpec(**tensor) for tensor in values["tensors"]]


def test_the_shipped_models_are_understood() -> None:
    models = sorted(file.stem for file in (Path(conf.__file__).parent / "model").glob("*.yaml"))
    understood = {model for model in models if read_layout(shipped(model)) is not None}
    assert set(models) - understood == {"tiny"}
    deepseek = read_layout(shipped("deepseek_v3"))
    assert deepseek is not None
    assert (deepseek.w13.rows, deepseek.w13.columns, deepseek.w13.halves) == (4096, 7168, 2)
    oss = read_layout(shipped("gpt_oss_20b"))
    assert oss is not None
    assert (oss.w2.rows, oss.w2.columns, oss.w2.bias) == (2880, 2880, 5)


BF16 = KINDS["bfloat16"]


@pytest.mark.parametrize(
    "specs",
    [
        TENSORS,
        BF16[:1],
        [*BF16, spec("other", [3], "float32")],
        [*BF16, spec("w2_weight_scale", [HIDDEN], "float32")],
        [*KINDS["fp8 in blocks"], spec("w2_weight_scale", [HIDDEN], "float32")],
        [BF16[0], spec("w2_weight", [HIDDEN, INTER + 1], "bfloat16")],
        [BF16[0], spec("w2_weight", [HIDDEN, INTER, 1], "bfloat16")],
        [BF16[0], spec("w2_weight", [HIDDEN, INTER], "int8")],
        [*BF16, spec("w2_bias", [HIDDEN + 1], "float32")],
        [BF16[0], spec("w2_weight", [HIDDEN, INTER // 2], "uint8")],
        [BF16[0], spec("w2_weight", [HIDDEN, INTER // 2], "uint8"), spec("w2_weight_scale", [HIDDEN, 50], "uint8")],
    ],
)
def test_other_tensors_go_through_the_ring(specs: list[TensorSpec]) -> None:
    assert read_layout(specs) is None
    assert isinstance(arithmetic_for(specs, 0, "safetensors"), Ring)


def test_generated_weights_go_through_the_ring() -> None:
    assert isinstance(arithmetic_for(BF16, 0, "synthetic"), Ring)
    assert isinstance(arithmetic_for(BF16, 0, "safetensors"), GatedMlp)
