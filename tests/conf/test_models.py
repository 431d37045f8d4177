"""The shipped models: that they are what their authors published, as engines hold them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

import conf
from stages.model import ModelSpec, TensorSpec

SHIPPED = sorted((Path(conf.__file__).parent / "model").glob("*.yaml"))

# name: layers, experts, groups, top_k, first MoE layer, bytes of an expert as held, and unscaled
FACTS = {
    "custom": (None, None, 1, None, 0, 12_288, 12_288),
    "tiny": (4, 8, 1, 2, 0, 7_429, 7_429),
    "gpt_oss_20b": (24, 32, 1, 4, 0, 206_820, 13_236_480),
    "mixtral_8x7b": (32, 8, 1, 2, 0, 352_321_536, 352_321_536),
    "olmoe_1b_7b": (16, 64, 1, 8, 0, 12_582_912, 12_582_912),
    "qwen3_30b_a3b": (48, 128, 1, 8, 0, 9_437_184, 9_437_184),
    "qwen3_235b_a22b": (94, 128, 1, 8, 0, 37_748_736, 37_748_736),
    "deepseek_v3": (58, 256, 8, 8, 3, 44_050_944, 44_050_944),
    "kimi_k2": (60, 384, 1, 8, 1, 44_050_944, 44_050_944),
}
HIDDEN_LAYERS = {"deepseek_v3": 61, "kimi_k2": 61, "qwen3_30b_a3b": 48, "gpt_oss_20b": 24}


def load(name: str) -> ModelSpec:
    file = Path(conf.__file__).parent / "model" / f"{name}.yaml"
    values = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert values.pop("defaults") == ["schema", "_self_"]
    return ModelSpec(**{**values, "tensors": [TensorSpec(**tensor) for tensor in values["tensors"]]})


def test_all_that_are_promised_are_shipped() -> None:
    assert {file.stem for file in SHIPPED} == set(FACTS)


@pytest.mark.parametrize("name", FACTS)
def test_facts_are_frozen(name: str) -> None:
    model = load(name)
    assert model.name == name
    facts = (model.layers, model.experts, model.num_groups, model.top_k, model.first_moe_layer, model.expert_bytes)
    assert (*facts, sum(tensor.nbytes for tensor in model.tensors)) == FACTS[name]
    if name in HIDDEN_LAYERS and model.layers is not None:
        assert model.hidden_layers(model.layers) == HIDDEN_LAYERS[name]


@pytest.mark.parametrize("name", FACTS)
def test_down_and_up_projections_fit(name: str) -> None:
    """w13 stacks gate and up: [2 · intermediate, hidden]; w2 is [hidden, intermediate]; MXFP4 holds two in a byte."""
    tensors = {tensor.name: tensor for tensor in load(name).tensors}
    w13, w2 = tensors["w13_weight"], tensors["w2_weight"]
    packed = 2 if w13.dtype == "uint8" else 1
    assert w13.shape == [2 * packed * w2.shape[1], w2.shape[0] // packed]


def test_only_the_default_model_is_scaled_down() -> None:
    assert {name for name in FACTS if load(name).scale != 1} == {"gpt_oss_20b"}


def test_tiny_has_odd_bytes_and_several_dtypes() -> None:
    tensors = load("tiny").tensors
    assert len({tensor.dtype for tensor in tensors}) == len(tensors) == 5
    assert any(tensor.nbytes % 4 for tensor in tensors)


def test_every_model_names_its_source() -> None:
    for file in SHIPPED:
        first = file.read_text(encoding="utf-8").splitlines()[0]
        assert first.startswith("# ")
        assert "huggingface.co/" in first or file.stem in ("custom", "tiny")
