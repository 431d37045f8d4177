"""Show that a model says the same before and after its experts were moved, read through the physical map.

    python -m examples.logits_through_placement outputs/small_moe outputs/live

Before: the model as it was saved. After: its experts are the slots that the run's update left (`update.save=shards`), and
every choice of a router is sent to a slot by the new map. Where an expert has several slots its tokens all go to the first
of them, then all to the second, and so on, so that every slot takes part; no logit may differ by a single bit.
"""

from __future__ import annotations

import argparse
import copy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from stages import paths
from stages.errors import BadInput, MoesaicError, sentence_of
from stages.placement import Placement, read_placement

SEQUENCES, LENGTH = 8, 128


class PhysicalExperts(torch.nn.Module):
    """The experts of a layer as slots. `slot_of`: [E] the slot that each logical expert's tokens go to."""

    def __init__(self, experts: Any, w13: torch.Tensor, w2: torch.Tensor) -> None:
        """`experts`: the layer's module, taken over but for its weights; `w13`, `w2`: [P, …] what the slots hold."""
        super().__init__()
        self.inner = copy.copy(experts)
        self.inner._parameters = {}
        self.inner.num_experts = len(w13)
        self.inner.gate_up_proj, self.inner.down_proj = torch.nn.Parameter(w13), torch.nn.Parameter(w2)
        self.slot_of = torch.zeros(0, dtype=torch.int64)

    def forward(self, hidden: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.inner(hidden, self.slot_of[chosen], weights)
        return found


def slots(run: Path, layer_id: int, tensor: str, dtype: torch.dtype) -> torch.Tensor:
    """[P, …]: what all slots of a layer hold, from the shards of all ranks."""
    files = sorted((run / "update" / "shards").glob("rank_*.safetensors"))
    if not files:
        raise BadInput(f"{run} has no update/shards: run with update.save=shards.")
    return torch.cat([load_file(file)[f"{file.stem}.layers.{layer_id}.{tensor}"] for file in files]).to(dtype)


def slot_choices(placement: Placement) -> list[np.ndarray]:
    """[L, E] each: the n-th slot of every expert, its last where it has fewer. As many as the most slots of an expert."""
    rows = placement.physical_to_logical_map
    held = [[np.flatnonzero(row == expert) for expert in range(placement.experts)] for row in rows]
    most = max(len(own) for layer in held for own in layer)
    return [np.array([[own[min(n, len(own) - 1)] for own in layer] for layer in held]) for n in range(most)]


def moe_layers(model: Any) -> list[int]:
    return [number for number, layer in enumerate(model.model.layers) if hasattr(layer.mlp, "experts")]


@torch.inference_mode()
def compare(model: Any, ids: torch.Tensor, run: Path) -> tuple[int, int]:
    """How many logits were compared and how many differ; the model's experts are slots afterwards."""
    model.set_experts_implementation("eager")
    before = model(input_ids=ids, use_cache=False).logits
    placement = read_placement(run / "place" / paths.PLACEMENT)
    layers = moe_layers(model)
    if len(layers) != placement.layers:
        raise BadInput(f"The model has {len(layers)} MoE layers, and the placement {placement.layers}.")
    for layer_id in layers:
        mlp = model.model.layers[layer_id].mlp
        own = [slots(run, layer_id, name, before.dtype) for name in ("w13_weight", "w2_weight")]
        mlp.experts = PhysicalExperts(mlp.experts, *own)
    different = 0
    choices = slot_choices(placement)
    for choice in choices:
        for layer_id, slot_of in zip(layers, choice, strict=True):
            model.model.layers[layer_id].mlp.experts.slot_of = torch.from_numpy(slot_of)
        different += int((model(input_ids=ids, use_cache=False).logits != before).sum())
    return before.numel() * len(choices), different


def main(arguments: list[str] | None = None) -> int:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", type=Path, help="the folder of the model, as examples.train_small_moe leaves it")
    parser.add_argument("run", type=Path, help="the folder of a run that moved it with update.save=shards")
    options = parser.parse_args(arguments)
    try:
        model = AutoModelForCausalLM.from_pretrained(options.model, local_files_only=True, use_safetensors=True).eval()
        text = (options.model / "held_out.txt").read_text(encoding="utf-8")
        ids = AutoTokenizer.from_pretrained(options.model, local_files_only=True)(text)["input_ids"]
        batch = torch.tensor(ids[: SEQUENCES * LENGTH]).reshape(SEQUENCES, LENGTH)
        compared, different = compare(model, batch, options.run)
    except (MoesaicError, OSError) as error:
        sys.stderr.write(f"{sentence_of(error)}\n")
        return error.exit_code if isinstance(error, MoesaicError) else 1
    print(f"Logits through the new placement: {compared:,} compared, {different:,} different")
    return 3 if different else 0


if __name__ == "__main__":
    sys.exit(main())
