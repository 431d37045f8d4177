"""Train a small MoE language model on the CPU, so that its routing is learned and not drawn.

    python -m examples.train_small_moe outputs/small_moe [--steps 300]

It reads bytes of the Python language reference (`pydoc_data.topics`, which Python itself ships), has the architecture of
Qwen3-MoE with a dense first layer as DeepSeek-V3 has, and is left as Hugging Face would have it: config.json,
model.safetensors, a tokenizer, and `held_out.txt`, text that it was not trained on. About half a minute on one core, which is faster than two: its matrices are too small to share.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch

LAYERS, EXPERTS, TOP_K = 4, 16, 2
HIDDEN, INTERMEDIATE, LONGEST = 96, 64, 512
SEQUENCES, LENGTH = 16, 128
LEARNING_RATE, WARM_UP = 4e-3, 20
BALANCE = 2e-3
"""Weight of the balancing loss: enough for no expert to die, too little for all to be alike."""
HELD_OUT = 0.1


def small_moe() -> Any:
    """The model with random weights."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    config = Qwen3MoeConfig(
        vocab_size=256,
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        num_hidden_layers=LAYERS,
        mlp_only_layers=[0],
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=24,
        max_position_embeddings=LONGEST,
        num_experts=EXPERTS,
        num_experts_per_tok=TOP_K,
        moe_intermediate_size=INTERMEDIATE,
        norm_topk_prob=True,
        router_aux_loss_coef=BALANCE,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )
    return Qwen3MoeForCausalLM(config)


def byte_tokenizer() -> Any:
    """A tokenizer whose tokens are the 256 bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: n for n, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def texts() -> tuple[str, str]:
    """What to train on, and what to hold out: the topics in alphabetical order, cut in two."""
    from pydoc_data.topics import topics

    whole = "\n\n".join(topics[name] for name in sorted(topics))
    cut = whole.index("\n\n", int(len(whole) * (1 - HELD_OUT)))
    return whole[:cut], whole[cut:].lstrip()


def train(model: Any, ids: torch.Tensor, steps: int, seed: int) -> list[float]:
    """The loss of every step, in nats a byte. `ids`: the text, [bytes]."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01, fused=True)
    losses = []
    began = time.monotonic()
    model.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            decay = 0.5 * (1 + math.cos(math.pi * step / steps))
            group["lr"] = LEARNING_RATE * min(1.0, (step + 1) / WARM_UP) * max(0.05, decay)
        starts = torch.randint(0, len(ids) - LENGTH, (SEQUENCES, 1), generator=generator)
        batch = ids[starts + torch.arange(LENGTH)]
        found = model(input_ids=batch, labels=batch, output_router_logits=True, use_cache=False)
        found.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(float(found.loss.detach() - BALANCE * found.aux_loss.detach()))
        if step % 25 == 0 or step == steps - 1:
            sys.stderr.write(f"step {step:4d}  loss {losses[-1]:.3f}  {time.monotonic() - began:.0f} s\n")
    model.eval()
    return losses


@torch.inference_mode()
def held_out_loss(model: Any, ids: torch.Tensor) -> float:
    """Nats a byte on text that the model was not trained on."""
    rows = ids[: len(ids) // LENGTH * LENGTH].reshape(-1, LENGTH)[:64]
    return float(model(input_ids=rows, labels=rows, use_cache=False).loss)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path, help="the folder to leave the model in")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    import transformers

    transformers.utils.logging.disable_progress_bar()
    training, held_out = texts()
    tokenizer, model = byte_tokenizer(), small_moe()
    ids, unseen = (torch.tensor(tokenizer(text)["input_ids"]) for text in (training, held_out))
    train(model, ids, options.steps, options.seed)
    loss = held_out_loss(model, unseen)
    options.out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)
    (options.out / "held_out.txt").write_text(held_out, encoding="utf-8")
    size = sum(parameter.numel() for parameter in model.parameters())
    print(
        f"Trained {size:,} parameters on {len(ids):,} bytes; {loss:.3f} nats a byte on held-out text; in {options.out}"
    )


if __name__ == "__main__":
    main()
