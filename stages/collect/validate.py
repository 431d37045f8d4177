"""From what a source says to loads that fit the model, or one message that names file, layer and rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stages.collect.dump import Dump
from stages.collect.faults import MOST, as_integers, first_fault
from stages.collect.words import many, numbered
from stages.errors import BadInput
from stages.expert_map import ExpertMap, check_map
from stages.load import LoadStats
from stages.model import ModelSpec

HOW_COUNTED = "windows, counted from 0"


@dataclass(frozen=True)
class Checked:
    """Loads that fit the model, and what was left out of the source to get them.

    rows:       [T] the source's row of each window
    layer_rows: [L] the source's layer of each MoE layer
    dense_rows: layers of the source that are dense layers of the model
    empty_rows: rows of the source that were never filled
    """

    load: LoadStats
    origin: str
    rows: npt.NDArray[np.int64]
    layer_rows: tuple[int, ...]
    dense_rows: tuple[int, ...] = ()
    empty_rows: tuple[int, ...] = ()


def check(dump: Dump, model: ModelSpec) -> Checked:
    """The loads of `dump`, without the model's dense layers and without rows that were never filled."""
    count = _windows_layers_experts(dump)
    layer_rows, dense_rows = _moe_layers(dump, count.shape[1], model)
    _check_experts(dump, count.shape[2], model)
    whole = _whole_numbers(dump.origin, count[:, layer_rows], layer_rows)
    if dump.labels and len(dump.labels) != len(whole):
        raise BadInput(f"{dump.origin} has {many(len(dump.labels), 'label')} for {many(len(whole), 'window')}.")
    filled = whole.any(axis=(1, 2))
    rows = np.flatnonzero(filled)
    if not len(rows):
        raise BadInput(f"{dump.origin} has no tokens: {numbered('layer', layer_rows)} are zero in all its rows.")
    labels = tuple(dump.labels[row] for row in rows) if dump.labels else ()
    current = _current(dump, count.shape[1], layer_rows, count.shape[2])
    return Checked(
        load=LoadStats(whole[filled], labels, current),
        origin=dump.origin,
        rows=rows,
        layer_rows=tuple(layer_rows),
        dense_rows=tuple(dense_rows),
        empty_rows=tuple(np.flatnonzero(~filled).tolist()),
    )


def require_tokens(checked: Checked) -> None:
    """Raise `BadInput` unless every layer has tokens in some window."""
    silent = np.flatnonzero(~checked.load.logical_count.any(axis=(0, 2)))
    if len(silent):
        layers = [checked.layer_rows[layer] for layer in silent]
        raise BadInput(
            f"{checked.origin}: {numbered('layer', layers)} {'has' if len(layers) == 1 else 'have'} no tokens at all, "
            f"in none of {numbered('row', checked.rows)} ({HOW_COUNTED})."
        )


def _windows_layers_experts(dump: Dump) -> npt.NDArray[np.generic]:
    """[T, L, E], whatever is in it."""
    shape = list(dump.count.shape)
    if len(shape) not in (2, 3):
        raise BadInput(
            f"{dump.origin}: logical_count has shape {shape}; allowed are [windows, layers, experts] and "
            "[layers, experts]."
        )
    if not dump.count.size:
        raise BadInput(f"{dump.origin} is empty: logical_count has shape {shape}.")
    return dump.count if len(shape) == 3 else dump.count[None]


def _moe_layers(dump: Dump, found: int, model: ModelSpec) -> tuple[list[int], list[int]]:
    """Which of the `found` layers of the source are MoE layers, and which are dense."""
    wanted = model.layers
    if wanted is None or found == wanted:
        return list(range(found)), []
    hidden = model.hidden_layers(wanted)
    if found == hidden:
        moe = model.layer_ids(wanted)
        return moe, sorted(set(range(found)) - set(moe))
    dense = f", or {hidden} with its dense ones" if hidden != wanted else ""
    missing = f": {numbered('layer', range(found, wanted))} of the model missing" if found < wanted else ""
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


def _whole_numbers(origin: str, count: npt.NDArray[np.generic], layer_rows: list[int]) -> npt.NDArray[np.int64]:
    """[T, L, E] as int64. Raises `BadInput` naming the first layer with a fault, the rows, and how many more."""
    fault = first_fault(count)
    if fault is not None:
        layers = np.flatnonzero(fault.where.any(axis=(0, 2)))
        layer = layers[0]
        rows = np.flatnonzero(fault.where[:, layer].any(axis=1))
        expert = np.flatnonzero(fault.where[rows[0], layer])[0]
        others = [layer_rows[other] for other in layers[1:]]
        more = f" There are such counts in {numbered('layer', others)} too." if others else ""
        raise BadInput(
            f"{origin}: layer {layer_rows[layer]} has counts that are {fault.what} in {numbered('row', rows)} "
            f"({HOW_COUNTED}); the first is {count[rows[0], layer, expert]!s} for expert {expert}.{more}"
        )
    whole = as_integers(count)
    sums = whole.sum(axis=(0, 2), dtype=np.float64)
    if sums.max() > MOST:
        layer = int(sums.argmax())
        raise BadInput(
            f"{origin}: layer {layer_rows[layer]} has {sums[layer]:.3g} tokens in all its rows; "
            f"at most 2^53 can be counted exactly."
        )
    return whole


def _current(dump: Dump, found: int, layer_rows: list[int], experts: int) -> ExpertMap | None:
    """[L, P]: the map that the loads came with; dense layers, if it has them, are left out."""
    if dump.current is None:
        return None
    name = f"{dump.origin}: physical_to_logical_map"
    shape = list(dump.current.shape)
    if len(shape) != 2 or dump.current.dtype.kind not in "iu":
        raise BadInput(f"{name} is {dump.current.dtype} of shape {shape}; whole numbers [layers, slots] are needed.")
    current = dump.current.astype(np.int64)
    if len(current) == found:
        current = current[layer_rows]
    elif len(current) != len(layer_rows):
        raise BadInput(f"{name} has {many(len(current), 'layer')}, but logical_count has {found}.")
    check_map(current, experts, 1, name)
    return current
