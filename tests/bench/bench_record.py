"""What counting costs a model that runs: python -m tests.bench.bench_record [hidden]

The same batch with and without the hooks, by turns in one process, so that what else the machine does falls on both. CPU
seconds of one thread; the best and the middle of many.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
import torch

from stages.recorder import ExpertLoadRecorder

LAYERS, EXPERTS, TOP_K = 4, 16, 4
SEQUENCES, LENGTH, ROUNDS = 4, 256, 25


def build(hidden: int) -> Any:
    from transformers import OlmoeConfig, OlmoeForCausalLM

    torch.manual_seed(0)
    config = OlmoeConfig(
        vocab_size=512, hidden_size=hidden, intermediate_size=hidden, num_hidden_layers=LAYERS, num_attention_heads=8,
        num_experts=EXPERTS, num_experts_per_tok=TOP_K, max_position_embeddings=512, bos_token_id=0, eos_token_id=0,
        pad_token_id=0,
    )  # fmt: skip
    return OlmoeForCausalLM(config).eval()


def seconds(model: Any, ids: torch.Tensor) -> float:
    began = time.process_time()
    with torch.inference_mode():
        model.model(input_ids=ids, use_cache=False)
    return time.process_time() - began


def main() -> None:
    hidden = int(sys.argv[1]) if len(sys.argv) > 1 else 512
    torch.set_num_threads(1)  # threads that wait for a busy machine's cores would be counted too
    model = build(hidden)
    ids = torch.randint(0, 512, (SEQUENCES, LENGTH))
    recorder = ExpertLoadRecorder(LAYERS, EXPERTS)
    plain, counted = [], []
    seconds(model, ids)
    for turn in range(ROUNDS):
        for watched in (turn % 2 == 0, turn % 2 == 1):
            if watched:
                with recorder.watching(model):
                    counted.append(seconds(model, ids))
                    recorder.end_window()
            else:
                plain.append(seconds(model, ids))
    print(
        f"{LAYERS} layers × {EXPERTS} experts, hidden {hidden}, {ids.numel():,} tokens, top {TOP_K}: CPU ms a forward pass"
    )
    for name, of in (("best", np.min), ("middle", np.median)):
        a, b = float(of(plain)), float(of(counted))
        print(f"{name:<8} without {a * 1e3:7.1f}   with {b * 1e3:7.1f}   overhead {100 * (b / a - 1):+.1f} %")


if __name__ == "__main__":
    main()
