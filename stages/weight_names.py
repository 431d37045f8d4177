"""How Hugging Face checkpoints name the expert weights that make up the tensors of a slot.

A slot's tensor is called `<matrix>_<what>`: `w13_weight`, `w2_weight_scale_inv`, `w13_bias`. Its matrix is `w1` (gate),
`w3` (up), `w13` (gate, then up: engines stack the two) or `w2` (down); `<what>` is passed on to the checkpoint's name.

| naming      | written by                                  | names below `….layers.{layer}.`                             |
|-------------|---------------------------------------------|-------------------------------------------------------------|
| Mixtral     | Mixtral                                     | `block_sparse_moe.experts.{expert}.{w1,w3,w2}.{what}`       |
| Qwen3-MoE   | Qwen3-MoE, OLMoE, DeepSeek-V3, Kimi-K2      | `mlp.experts.{expert}.{gate,up,down}_proj.{what}`           |
| gpt-oss     | gpt-oss in MXFP4, experts on dimension 0    | `mlp.experts.{gate_up,down}_proj_{blocks,scales,bias}`      |
| gpt-oss 16  | gpt-oss in bfloat16, its weights transposed | `mlp.experts.{gate_up,down}_proj`, and the same with `_bias`|
| fused       | transformers 5 if told not to split experts | `mlp.experts.{gate_up,down}_proj`, `…_{bias,scale_inv}`     |

In both of gpt-oss the rows of gate and up alternate, and stay so: the engines' kernels take them like that. Layers are
numbered as in the model, dense ones included.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass

from stages.errors import BadInput
from stages.model import TensorSpec

MATRICES = {"w13": ("w1", "w3"), "w1": ("w1",), "w3": ("w3",), "w2": ("w2",)}
"""What a slot's matrix stacks, from top to bottom."""
LAYER = re.compile(r"^(?P<prefix>(?:.*\.)?)layers\.(?P<layer>\d+)\.(?:mlp|block_sparse_moe)\.experts\.")


@dataclass(frozen=True)
class Part:
    """A tensor of a checkpoint. `row`: the expert's place in a tensor that holds all of a layer, else None.

    flat: its dimensions after the first are one in the slot. transposed: its two dimensions are swapped in the slot.
    """

    name: str
    row: int | None = None
    flat: bool = False
    transposed: bool = False


@dataclass(frozen=True)
class Naming:
    """One way to name expert weights. `fused`: all experts of a layer are one tensor, which has gate and up together.

    name: (matrix, what, expert) -> the name below the layer.
    """

    title: str
    name: Callable[[str, str, int], str]
    fused: bool = False
    flat: bool = False
    transposed: bool = False
    told_by: tuple[str, ...] = ("weight",)
    """What of w2 a checkpoint of fused experts has that is of this naming and of none before it."""

    def fits(self, start: str, names: Collection[str]) -> bool:
        """Are there such experts in the layer whose names begin with `start`?"""
        if self.fused:
            return all(start + self.name("w2", what, 0) in names for what in self.told_by)
        stem = start + self.name("w2", "", 0)
        return any(name.startswith(stem) for name in names)


_FUSED = {"w13": "gate_up_proj", "w2": "down_proj"}


def _mixtral(matrix: str, what: str, expert: int) -> str:
    return f"block_sparse_moe.experts.{expert}.{matrix}.{what}"


def _qwen(matrix: str, what: str, expert: int) -> str:
    projection = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}[matrix]
    return f"mlp.experts.{expert}.{projection}.{what}"


def _mxfp4(matrix: str, what: str, expert: int) -> str:
    ending = {"weight": "blocks", "weight_scale": "scales"}.get(what, what)
    return f"mlp.experts.{_FUSED[matrix]}_{ending}"


def _fused(matrix: str, what: str, expert: int) -> str:
    ending = what.removeprefix("weight").removeprefix("_")
    return f"mlp.experts.{_FUSED[matrix]}" + (f"_{ending}" if ending else "")


NAMINGS = (
    Naming("Mixtral", _mixtral),
    Naming("Qwen3-MoE", _qwen),
    Naming("gpt-oss", _mxfp4, fused=True, flat=True),
    Naming("gpt-oss 16", _fused, fused=True, transposed=True, told_by=("weight", "bias")),
    Naming("fused", _fused, fused=True),
)


@dataclass(frozen=True)
class FoundNaming:
    """The naming of one checkpoint, and what its names begin with."""

    naming: Naming
    prefix: str

    def parts(self, spec: TensorSpec, layer_id: int, expert: int) -> list[Part]:
        """The tensors that make up the tensor `spec` of a slot, stacked along dimension 0 in this order."""
        matrix, what = _split(spec)
        naming, weight = self.naming, what == "weight"
        if naming.fused and matrix not in _FUSED:
            raise BadInput(
                f"model.tensors: {spec.name} cannot be filled from a checkpoint in the naming {naming.title}, which has "
                "gate and up together: call it w13."
            )
        return [
            Part(
                name=f"{self.prefix}layers.{layer_id}.{naming.name(one, what, expert)}",
                row=expert if naming.fused else None,
                flat=naming.flat and weight,
                transposed=naming.transposed and weight,
            )
            for one in ((matrix,) if naming.fused else MATRICES[matrix])
        ]


def find_naming(names: Collection[str], layer_id: int, folder: object) -> FoundNaming:
    """The naming by which the experts of layer `layer_id` are among `names`. Raises `BadInput` if none fits.

    Of several prefixes (a model may bring a draft model along) the one of most tensors is taken.
    """
    matches = [match for name in names if (match := LAYER.match(name))]
    prefixes = [prefix for prefix, _ in Counter(match["prefix"] for match in matches).most_common()]
    for prefix in prefixes:
        for naming in NAMINGS:
            if naming.fits(f"{prefix}layers.{layer_id}.", names):
                return FoundNaming(naming, prefix)
    layers = sorted({int(match["layer"]) for match in matches})
    found = f"those of layers {layers[0]} to {layers[-1]}" if layers else "no experts at all"
    raise BadInput(
        f"update.weights_path={folder}: the experts of layer {layer_id} are not there under a known name "
        f"({', '.join(naming.title for naming in NAMINGS)}); it holds {found}."
    )


def _split(spec: TensorSpec) -> tuple[str, str]:
    matrix, _, what = spec.name.partition("_")
    if matrix not in MATRICES or not what:
        raise BadInput(
            f"model.tensors: {spec.name} cannot be filled from files: a name such as w13_weight or w2_weight_scale_inv "
            f"is needed, with {', '.join(MATRICES)} for gate and up, gate, up, and down."
        )
    return matrix, what
