"""Small checkpoints as they are published, with random weights, and what every slot must then hold.

Those of `transformers` are written by its own `save_pretrained`; the quantised ones by hand, in the names and shapes of
huggingface.co/deepseek-ai/DeepSeek-V3 and huggingface.co/openai/gpt-oss-20b. What slots must hold is put together
here from the model itself, not by way of the files.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from stages.model import ModelSpec, TensorSpec

LAYERS, EXPERTS, HIDDEN, INTER = 3, 4, 32, 48
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """`slot(layer, expert)`: the tensors that a slot must hold, in the order of `model.tensors`; `title`: its naming."""

    folder: Path
    model: ModelSpec
    title: str
    slot: Callable[[int, int], list[torch.Tensor]]

    @property
    def layers(self) -> int:
        assert self.model.layers is not None
        return self.model.layers


def model_of(tensors: list[torch.Tensor], names: list[str], layers: int = LAYERS, first: int = 0) -> ModelSpec:
    specs = [
        TensorSpec(name, list(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        for name, tensor in zip(names, tensors, strict=True)
    ]
    return ModelSpec(layers=layers, experts=EXPERTS, top_k=2, first_moe_layer=first, tensors=specs)


def by_transformers(folder: Path, family: str, *, fused: bool = False, seed: int = 0) -> Checkpoint:
    """`family`: mixtral, qwen3_moe, olmoe, deepseek_v3 or gpt_oss; `fused`: as transformers 5 holds them in memory."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"vocab_size": 32, "hidden_size": HIDDEN, "num_attention_heads": 2, "num_key_value_heads": 2}
    sizes |= {"num_hidden_layers": LAYERS, "intermediate_size": INTER, "eos_token_id": 1, "bos_token_id": 1}
    sizes |= {"pad_token_id": 1, "head_dim": 16}
    inter = {"moe_intermediate_size": INTER}
    special = {
        "mixtral": {"num_local_experts": EXPERTS},
        "qwen3_moe": {"num_experts": EXPERTS, **inter},
        "olmoe": {"num_experts": EXPERTS},
        "deepseek_v3": {
            "n_routed_experts": EXPERTS, "first_k_dense_replace": 1, "n_group": 2, "topk_group": 1, "q_lora_rank": 8,
            "kv_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, **inter,
        },
        "gpt_oss": {"num_local_experts": EXPERTS, "layer_types": ["full_attention"] * LAYERS},
    }  # fmt: skip
    config = AutoConfig.for_model(family, **{**sizes, **special[family]})
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    model.save_pretrained(folder, max_shard_size="20KB", save_original_format=not fused)
    first = 1 if family == "deepseek_v3" else 0
    transposed = family == "gpt_oss"

    def slot(layer: int, expert: int) -> list[torch.Tensor]:
        experts = model.model.layers[first + layer].mlp.experts
        weights = [experts.gate_up_proj[expert].detach(), experts.down_proj[expert].detach()]
        if not transposed:
            return weights
        biases = [experts.gate_up_proj_bias[expert].detach(), experts.down_proj_bias[expert].detach()]
        return [weights[0].T.contiguous(), biases[0], weights[1].T.contiguous(), biases[1]]

    names = ["w13_weight", "w13_bias", "w2_weight", "w2_bias"] if transposed else ["w13_weight", "w2_weight"]
    titles = {"mixtral": "Mixtral", "gpt_oss": "gpt-oss 16"}
    title = "fused" if fused and not transposed else titles.get(family, "Qwen3-MoE")
    return Checkpoint(folder, model_of(slot(0, 0), names, LAYERS - first, first), title, slot)


def deepseek_fp8(folder: Path, *, dense: int = 1, seed: int = 0, sharded: bool = True) -> Checkpoint:
    """fp8 weights with a float32 scale for 16 × 16 values, after `dense` dense layers, with a draft layer at the end."""
    generator = torch.Generator().manual_seed(seed)
    tensors: Tensors = {"model.embed_tokens.weight": torch.zeros(4, HIDDEN)}
    for layer in range(dense):
        tensors[f"model.layers.{layer}.mlp.gate_proj.weight"] = torch.zeros(INTER, HIDDEN)
    for layer in range(dense, dense + LAYERS + 1):
        for expert in range(EXPERTS):
            for name, shape in (
                ("gate_proj", [INTER, HIDDEN]),
                ("up_proj", [INTER, HIDDEN]),
                ("down_proj", [HIDDEN, INTER]),
            ):
                key = f"model.layers.{layer}.mlp.experts.{expert}.{name}.weight"
                tensors[key] = (torch.randn(shape, generator=generator) * 16).to(torch.float8_e4m3fn)
                scale = torch.rand([size // 16 for size in shape], generator=generator) + 0.5
                tensors[f"{key}_scale_inv"] = scale
        tensors[f"model.layers.{layer}.mlp.shared_experts.up_proj.weight"] = torch.zeros(INTER, HIDDEN)
    save(folder, tensors, files=4 if sharded else 1)

    def slot(layer: int, expert: int) -> list[torch.Tensor]:
        def one(projection: str, what: str) -> torch.Tensor:
            return tensors[f"model.layers.{dense + layer}.mlp.experts.{expert}.{projection}.{what}"]

        stacked = [
            torch.cat([one("gate_proj", what).view(torch.uint8), one("up_proj", what).view(torch.uint8)]).view(dtype)
            for what, dtype in (("weight", torch.float8_e4m3fn), ("weight_scale_inv", torch.float32))
        ]
        return [*stacked, one("down_proj", "weight"), one("down_proj", "weight_scale_inv")]

    names = ["w13_weight", "w13_weight_scale_inv", "w2_weight", "w2_weight_scale_inv"]
    return Checkpoint(folder, model_of(slot(0, 0), names, first=dense), "Qwen3-MoE", slot)


def gpt_oss_mxfp4(folder: Path, *, seed: int = 0) -> Checkpoint:
    """Two 4-bit values a byte, 32 values with one scale byte, all experts of a layer in one tensor."""
    generator = torch.Generator().manual_seed(seed)
    tensors: Tensors = {}
    for layer in range(LAYERS):
        for name, rows, columns in (("gate_up_proj", 2 * INTER, 32), ("down_proj", 32, 64)):
            key = f"model.layers.{layer}.mlp.experts.{name}"
            blocks = [EXPERTS, rows, columns // 32, 16]
            tensors[f"{key}_blocks"] = torch.randint(0, 256, blocks, dtype=torch.uint8, generator=generator)
            tensors[f"{key}_scales"] = torch.randint(110, 130, blocks[:3], dtype=torch.uint8, generator=generator)
            tensors[f"{key}_bias"] = torch.randn(blocks[:2], generator=generator).bfloat16()
    save(folder, tensors, files=1)

    def slot(layer: int, expert: int) -> list[torch.Tensor]:
        found = []
        for name in ("gate_up_proj", "down_proj"):
            key = f"model.layers.{layer}.mlp.experts.{name}"
            found += [tensors[f"{key}_blocks"][expert].flatten(1), tensors[f"{key}_scales"][expert]]
            found.append(tensors[f"{key}_bias"][expert])
        return found

    names = [f"{matrix}_{what}" for matrix in ("w13", "w2") for what in ("weight", "weight_scale", "bias")]
    return Checkpoint(folder, model_of(slot(0, 0), names), "gpt-oss", slot)


def save(folder: Path, tensors: Tensors, files: int = 1) -> None:
    """As `model.safetensors`, or spread over `files` of them with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    if files == 1:
        save_file(tensors, folder / "model.safetensors")
        return
    weight_map = {}
    for number in range(files):
        file = f"model-{number + 1:05}-of-{files:05}.safetensors"
        part = dict(list(tensors.items())[number::files])
        save_file(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


ALL: dict[str, Callable[[Path], Checkpoint]] = {
    **{
        family: lambda folder, family=family: by_transformers(folder, family)
        for family in ("mixtral", "qwen3_moe", "olmoe", "deepseek_v3", "gpt_oss")
    },
    **{
        f"{family}_fused": lambda folder, family=family: by_transformers(folder, family, fused=True)
        for family in ("mixtral", "qwen3_moe", "deepseek_v3")
    },
    "deepseek_fp8": deepseek_fp8,
    "gpt_oss_mxfp4": gpt_oss_mxfp4,
}
