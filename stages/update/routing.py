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


def route(seed: int, layer: int, experts: Ints, rounds: int, top_k: int) -> Routing:
    """Route tokens so that every one of `experts` gets at least `rounds` of them, and each token `top_k` experts.

    In every round the router likes the experts in a random order. A round's first token takes the `top_k` best, the
    next one the next best; the last one fills up with the best. So every replica comes to serve some token, as long
    as an expert has no more than `rounds` of them.
    """
    if not len(experts):
        return Routing(*(np.empty(0, dtype=np.int64) for _ in range(3)))
    top_k = min(top_k, len(experts))
    tokens = -(-len(experts) // top_k)
    round_, expert = np.meshgrid(np.arange(rounds), experts, indexing="ij")
    start = splitmix64(np.array([seed], dtype=np.int64).view(np.uint64))
    mixed = splitmix64(start ^ np.uint64(layer))
    scores = splitmix64(splitmix64(mixed ^ round_.astype(np.uint64)) ^ expert.astype(np.uint64))
    liked = experts[np.argsort(scores, axis=1)]
    chosen = (np.arange(tokens)[:, None] * top_k + np.arange(top_k)) % len(experts)
    flat = liked[:, chosen].ravel()
    return Routing(flat, np.repeat(np.arange(rounds * tokens), top_k), _turns(flat))


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


def rounds_for(maps: list[ExpertMap], experts: int) -> int:
    """How many tokens an expert needs so that each of its replicas in each of the maps serves one."""
    return max(int(replica_counts(expert_map, experts).max(initial=1)) for expert_map in maps)
