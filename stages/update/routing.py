"""A seeded logical router, and which replica of an expert serves which token. Pure: numpy alone.

Shape letters: `T` tokens of a layer, `k` experts a token, `N` = T·k products of a token and an expert, in order of token.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stages.checksum import splitmix64
from stages.expert_map import EMPTY, ExpertMap, replica_counts

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Routing:
    """`expert`, `token` [N]; `turn` [N]: how many products of the same expert came before."""

    expert: Ints
    token: Ints
    turn: Ints


def route(seed: int, layer: int, experts: Ints, needs: Ints, top_k: int) -> Routing:
    """Route as many tokens as it takes to send `needs[i]` or more to `experts[i]`; each goes to `top_k` experts.

    In every round the router likes the experts in a random order, those first that still need a token. The first token
    takes the `top_k` best, the next one the next best, until none is in need.
    """
    top_k = min(top_k, len(experts))
    parts = [np.empty(0, dtype=np.int64)]
    for round_ in range(int(needs.max(initial=0))):
        needy = needs > round_
        liked = experts[np.lexsort((_scores(seed, layer, round_, experts), ~needy))]
        choices = -(-int(needy.sum()) // top_k) * top_k
        parts.append(liked[np.arange(choices) % len(liked)])
    expert = np.concatenate(parts)
    return Routing(expert, np.arange(len(expert)) // max(1, top_k), _turns(expert))


def _scores(seed: int, layer: int, round_: int, experts: Ints) -> npt.NDArray[np.uint64]:
    start = splitmix64(np.array([seed], dtype=np.int64).view(np.uint64))
    return splitmix64(splitmix64(splitmix64(start ^ np.uint64(layer)) ^ np.uint64(round_)) ^ experts.astype(np.uint64))


def _turns(expert: Ints) -> Ints:
    """[N]: for each entry, how many equal ones come before it."""
    order = np.argsort(expert, kind="stable")
    ordered = expert[order]
    first = np.searchsorted(ordered, ordered)
    turns = np.empty_like(order)
    turns[order] = np.arange(len(expert)) - first
    return turns


def serving_slots(routing: Routing, row: npt.NDArray[np.int64]) -> Ints:
    """[N]: the slot that serves each product, given a layer's map `row` [P]: replicas, in order of slot, take turns."""
    filled = np.flatnonzero(row != EMPTY)
    slots = filled[np.argsort(row[filled], kind="stable")]
    held = row[slots]
    first = np.searchsorted(held, routing.expert)
    count = np.searchsorted(held, routing.expert, side="right") - first
    return slots[first + routing.turn % count]


def most_replicas(maps: list[ExpertMap], experts: int) -> Ints:
    """[L, E]: how many tokens an expert needs so that each of its replicas in each of the maps serves one."""
    return np.max([replica_counts(expert_map, experts) for expert_map in maps], axis=0)
