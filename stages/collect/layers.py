"""Which layers of a source are MoE layers of the model, and the placement that came with the loads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stages.collect.dump import AnyArray, Dump
from stages.collect.words import many, numbered
from stages.errors import BadInput
from stages.expert_map import ExpertMap, check_map
from stages.model import ModelSpec


@dataclass(frozen=True)
class Layout:
    """`found`: layers of the source, `moe`: those that are MoE layers, `dense`: those that are not, `names`: what the
    MoE layers are called in the source, `experts`: E."""

    found: int
    experts: int
    moe: list[int]
    dense: list[int]
    names: list[int]

    @property
    def all_moe(self) -> bool:
        return len(self.moe) == self.found


def layout_of(dump: Dump, shape: tuple[int, ...], model: ModelSpec) -> Layout:
    """`shape`: [T, layers, E] of the first block. Raises `BadInput` where the model has others."""
    _, found, experts = shape
    moe, dense = _moe_layers(dump, found, model)
    _check_experts(dump, experts, model)
    ids = dump.layer_ids or tuple(range(found))
    return Layout(found, experts, moe, [ids[row] for row in dense], [ids[row] for row in moe])


def _moe_layers(dump: Dump, found: int, model: ModelSpec) -> tuple[list[int], list[int]]:
    wanted = model.layers
    if wanted is None or found == wanted:
        return list(range(found)), []
    hidden = model.hidden_layers(wanted)
    if dump.layer_ids is not None and set(model.layer_ids(wanted)) <= set(dump.layer_ids):
        moe = [dump.layer_ids.index(layer) for layer in model.layer_ids(wanted)]
        return moe, sorted(set(range(found)) - set(moe))
    if dump.layer_ids is None and found == hidden:
        moe = model.layer_ids(wanted)
        return moe, sorted(set(range(found)) - set(moe))
    dense = f", or {hidden} with its dense ones" if hidden != wanted else ""
    missing = f": {numbered('layer', range(found, wanted))} of the model missing" if found < wanted else ""
    if dump.layer_ids is not None:
        absent = sorted(set(model.layer_ids(wanted)) - set(dump.layer_ids))
        missing = f": {numbered('layer', absent)} of the model missing"
    raise BadInput(
        f"{dump.origin} has {many(found, 'layer')}{missing}; the model has {wanted} (model.layers={wanted}){dense}."
        + (f" {dump.advice}" if dump.advice else "")
    )


def _check_experts(dump: Dump, found: int, model: ModelSpec) -> None:
    wanted = model.experts
    if wanted is None or found == wanted:
        return
    advice = dump.advice
    if not advice and found < wanted:
        advice = "A table needs rows of count 0 for experts that got no tokens."
    raise BadInput(
        f"{dump.origin} has {many(found, 'expert')} in each of its layers; the model has {wanted} (model.experts={wanted})."
        + (f" {advice}" if advice else "")
    )


def current_map(dump: Dump, current: AnyArray | None, layout: Layout) -> ExpertMap | None:
    """[L, P]: the map that the loads came with; dense layers, if it has them, are left out."""
    if current is None:
        return None
    name = f"{dump.origin}: physical_to_logical_map"
    shape = list(current.shape)
    if len(shape) != 2 or current.dtype.kind not in "iu":
        raise BadInput(f"{name} is {current.dtype} of shape {shape}; whole numbers [layers, slots] are needed.")
    found = current.astype(np.int64)
    if len(found) == layout.found:
        found = found[layout.moe]
    elif len(found) != len(layout.moe):
        raise BadInput(f"{name} has {many(len(found), 'layer')}, but logical_count has {layout.found}.")
    check_map(found, layout.experts, 1, name)
    return found
