"""Hugging Face models of every family that is known to work, too small to be any good, made here."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

FAMILIES: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 8},
    "qwen2_moe": {"num_experts": 8, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16,
                  "decoder_sparse_step": 1, "mlp_only_layers": [1]},
    "qwen3_moe": {"num_experts": 8, "moe_intermediate_size": 16, "head_dim": 8},
    "olmoe": {"num_experts": 8},
    "deepseek_v3": {"n_routed_experts": 8, "moe_intermediate_size": 16, "n_group": 4, "topk_group": 2,
                    "first_k_dense_replace": 1, "q_lora_rank": 16, "kv_lora_rank": 8, "qk_rope_head_dim": 4,
                    "qk_nope_head_dim": 4, "v_head_dim": 8, "n_shared_experts": 1},
    "gpt_oss": {"num_local_experts": 8, "head_dim": 8},
}  # fmt: skip
MOE_LAYERS = {"qwen2_moe": [0, 2, 3], "deepseek_v3": [1, 2, 3]}
COMMON = {
    "vocab_size": 256, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "num_experts_per_tok": 2, "bos_token_id": 0,
    "eos_token_id": 0, "pad_token_id": 0,
}  # fmt: skip


@cache
def build(family: str) -> Any:
    """A model with random weights, the same ones every time."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    torch.manual_seed(0)
    config = CONFIG_MAPPING[family](**{**COMMON, **FAMILIES[family]})
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("gate.weight", "router.weight")):  # or each token would go where the others do
                parameter.normal_(0, 1)
    return model


def save(family: str, folder: Path) -> Path:
    """The model with a tokenizer whose tokens are bytes."""
    build(family).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def save_tokenizer(folder: Path) -> None:
    from examples.train_small_moe import byte_tokenizer

    byte_tokenizer().save_pretrained(folder)


def byte_ids(text: str) -> list[int]:
    """What the tokenizer makes of `text`: a number for every byte."""
    from examples.train_small_moe import byte_tokenizer

    ids: list[int] = byte_tokenizer()(text)["input_ids"]
    assert len(ids) == len(text.encode())
    return ids
