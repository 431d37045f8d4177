"""The routers of a Hugging Face MoE model: which modules they are, and what they choose.

In transformers 5 the router of every family (Mixtral, Qwen2-MoE, Qwen3-MoE, OLMoE, DeepSeek-V3, gpt-oss and others) is a
module of its own that returns (logits, weights, indices), indices [tokens, k]. Which class that is, the model says in
`_can_record_outputs["router_logits"]`, which transformers itself hooks to give out router logits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stages.errors import BadInput

if TYPE_CHECKING:
    import torch
    from torch.utils.hooks import RemovableHandle

KNOWN = "mixtral, qwen2_moe, qwen3_moe, olmoe, deepseek_v3, gpt_oss"


@dataclass(frozen=True)
class Router:
    """`name`: of the module in the model, `layer`: the model's number of its layer (dense ones counted)."""

    name: str
    module: torch.nn.Module
    layer: int
    experts: int
    top_k: int

    def watch(self, take: Callable[[torch.Tensor], None]) -> RemovableHandle:
        """Call `take` with the chosen experts [tokens, k] after every forward pass, until the handle is removed."""

        def hook(module: torch.nn.Module, inputs: Any, output: Any) -> None:
            take(chosen(output, self.top_k, self.name))

        return self.module.register_forward_hook(hook)


def chosen(output: Any, top_k: int, name: str) -> torch.Tensor:
    """[tokens, k]: the indices in what a router returned."""
    import torch

    if isinstance(output, tuple):
        for part in reversed(output):
            if isinstance(part, torch.Tensor) and not part.is_floating_point() and part.shape[-1] == top_k:
                return part
    raise BadInput(f"The router {name} returns no indices of {top_k} experts a token: this transformers is not known.")


def find_routers(model: torch.nn.Module) -> list[Router]:
    """One router a MoE layer, in order of the layers. Raises `BadInput` where there is none that is known."""
    classes = {kind for part in model.modules() for kind in _declared(part)}
    routers = [
        Router(name, module, _layer(name), *_size(name, module))
        for name, module in model.named_modules()
        if not classes.isdisjoint(type(module).__mro__)
    ]
    if not routers:
        raise BadInput(f"{type(model).__name__} has no routers that are known; families known to work: {KNOWN}.")
    return sorted(routers, key=lambda router: router.layer)


def _declared(module: torch.nn.Module) -> list[type]:
    """The router classes that a (part of a) model names."""
    recorded = getattr(module, "_can_record_outputs", None)
    entry = recorded.get("router_logits") if isinstance(recorded, dict) else None
    entries = entry if isinstance(entry, list | tuple) else [entry]
    kinds = [getattr(one, "target_class", one) for one in entries]
    return [kind for kind in kinds if isinstance(kind, type)]


def _layer(name: str) -> int:
    """The last number in the module's name is that of its layer: model.layers.3.mlp.gate."""
    numbers = [int(part) for part in name.split(".") if part.isdigit()]
    return numbers[-1] if numbers else 0


def _size(name: str, module: Any) -> tuple[int, int]:
    """Experts and top-k."""
    experts, top_k = getattr(module, "num_experts", None), getattr(module, "top_k", None)
    if not isinstance(experts, int) or not isinstance(top_k, int):
        raise BadInput(f"The router {name} does not say its experts and its top-k: this transformers is not known.")
    return experts, top_k
