"""One placement for each layer, out of several that move more or less, so that the moves are made where they pay most.

Balancedness is a mean over layers, so a move is worth the same in each of them: of all steps between a layer's options
that lie on their upper hull, the ones that gain most for what they cost are taken first. That is best for every sum it
stops at; what is left of a cap is then filled with single steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Options:
    """Of one layer, [N] each, the cheapest first: `balance` (mean / largest GPU load), `moved` slots and their `cost`."""

    balance: Floats
    moved: Floats
    cost: Floats


@dataclass(frozen=True)
class Steps:
    """Steps from option to option, in the order in which they are taken; [M] each. `price` and `gain` are differences."""

    layer: Ints
    option: Ints
    price: Floats
    gain: Floats


def steps_of(options: Sequence[Options], price: str) -> Steps:
    """The steps along the upper hulls of balance over `price` (`moved` or `cost`), the most gain for it first."""
    parts = []
    for layer, each in enumerate(options):
        x, y = np.asarray(getattr(each, price), dtype=np.float64), each.balance
        at = 0
        while True:
            dx, dy = x[at + 1 :] - x[at], y[at + 1 :] - y[at]
            if not (dy > 0).any():
                break
            slope = np.where(dy > 0, dy / np.maximum(dx, 1e-9), -np.inf)
            # Of equal slopes the last: one long step for several short ones.
            n = len(slope) - 1 - int(slope[::-1].argmax())
            parts.append((layer, at + 1 + n, dx[n], dy[n]))
            at += 1 + n
    columns = np.array(parts, dtype=np.float64).reshape(-1, 4)
    order = np.argsort(-columns[:, 3] / np.maximum(columns[:, 2], 1e-9), kind="stable")
    layer, option, dx, dy = columns[order].T
    return Steps(layer.astype(np.int64), option.astype(np.int64), dx, dy)


def curve(options: Sequence[Options]) -> tuple[Floats, Floats]:
    """Moved slots of all layers and the balancedness that they buy, from the current placements to the best."""
    steps = steps_of(options, "moved")
    first = sum(float(each.moved[0]) for each in options)
    balance = sum(float(each.balance[0]) for each in options)
    moved = first + np.concatenate([[0.0], np.cumsum(steps.price)])
    return moved, (balance + np.concatenate([[0.0], np.cumsum(steps.gain)])) / len(options)


def choose(options: Sequence[Options], target: float | None, cap: int | None) -> Ints:
    """[L]: the option of each layer, for `target` at little cost if there is one, with at most `cap` moved slots if there
    is one; what moves least where the cap cannot be kept."""
    chosen = None if target is None else least_for(options, target)
    if chosen is None or (cap is not None and sum(o.moved[n] for o, n in zip(options, chosen, strict=True)) > cap):
        assert cap is not None
        chosen = best_within(options, cap)
    return chosen


def best_within(options: Sequence[Options], cap: int) -> Ints:
    """[L]: the option of each layer, for the best balancedness with at most `cap` moved slots."""
    moved, balance = _table(options, "moved"), _table(options, "balance")
    chosen = np.zeros(len(options), dtype=np.int64)
    left = cap - float(moved[:, 0].sum())
    steps = steps_of(options, "moved")
    for layer, option, price in zip(steps.layer, steps.option, steps.price, strict=True):
        if price > left:
            break
        chosen[layer] = option
        left -= price
    each = np.arange(len(options))
    while True:
        price = moved - moved[each, chosen][:, None]
        gain = np.where(price <= left, balance - balance[each, chosen][:, None], 0.0)
        layer, option = np.unravel_index(int(gain.argmax()), gain.shape)
        if gain[layer, option] <= 0:
            return chosen
        left -= price[layer, option]
        chosen[layer] = option


def least_for(options: Sequence[Options], target: float) -> Ints:
    """[L]: the option of each layer, for a balancedness of at least `target` at little cost; the best where it cannot
    be reached."""
    cost, balance = _table(options, "cost"), _table(options, "balance")
    each = np.arange(len(options))
    wanted = target * len(options)
    chosen = np.zeros(len(options), dtype=np.int64)
    steps = steps_of(options, "cost")
    for layer, option, gain in zip(steps.layer, steps.option, steps.gain, strict=True):
        lacking = wanted - balance[each, chosen].sum()
        if lacking <= 0:
            break
        if gain >= lacking:  # the last step: the cheapest in any layer that is enough
            price = cost - cost[each, chosen][:, None]
            price = np.where(balance - balance[each, chosen][:, None] >= lacking, price, np.inf)
            layer, option = np.unravel_index(int(price.argmin()), price.shape)
        chosen[layer] = option
    while True:  # give back what is more than enough, the largest saving first
        spare = balance[each, chosen].sum() - wanted
        saving = cost[each, chosen][:, None] - cost
        saving = np.where(balance[each, chosen][:, None] - balance <= spare, saving, 0.0)
        layer, option = np.unravel_index(int(saving.argmax()), saving.shape)
        if spare < 0 or saving[layer, option] <= 0:
            return chosen
        chosen[layer] = option


def _table(options: Sequence[Options], name: str) -> Floats:
    """[L, most options]: one column of all layers, padded with values that are never chosen."""
    out = np.full((len(options), max(len(each.balance) for each in options)), -np.inf if name == "balance" else np.inf)
    for layer, each in enumerate(options):
        out[layer, : len(each.balance)] = getattr(each, name)
    return out
