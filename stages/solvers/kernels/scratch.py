"""A placement of one layer from nothing, made better step by step.

Replica counts and packing are decided together. A step takes one replica from some expert and gives it to another (once
or a few times), packs anew and evens out, and the result is kept if the fullest GPU has less to do, or not much more:

    pack      heaviest replica first, each to the emptiest GPU that has room and not the same expert yet (LPT; Graham,
              1969), in an order that is shaken a little
    even out  exchange a replica of the fullest GPU for one of another while that lowers the larger of both loads

It is an iterated local search (Lourenço, Martin and Stützle, 2003). The tolerance for worse steps rises while none helps
and falls back to none, where the search returns to the best that it has seen.
"""

from __future__ import annotations

import numpy as np

from stages.solvers.kernels.compiled import Experts, Floats, Held, Ints, Words, compiled, inner
from stages.solvers.kernels.draws import below, fraction

HEAT = (0.0, 1e-3, 3e-3, 1e-2, 3e-2)
"""Tolerances, as shares of the largest GPU load, each for `PERIOD` steps without success."""
PERIOD = 25
SHAKE = 0.5
"""How much heavier than it is an expert is taken to be at most when the order is shaken; mostly it is far less."""
AGAIN = 0.3
"""How likely a step changes the counts once more, up to `CHANGES` times."""
CHANGES = 4

BEST, NOW = 0, 1  # of `top`: largest GPU load of the best placement, and of the one that steps start from
TAKEN, STALE = 0, 1  # of `steps`: how many were taken, and how many since the last that helped


@compiled
def improve(
    load: Floats,
    capacity: Ints,
    most: int,
    bound: float,
    quota: int,
    patience: int,
    random: Words,
    order: Ints,
    counts: Experts,
    best_counts: Experts,
    best_slot: Experts,
    top: Floats,
    steps: Ints,
) -> None:
    """Take up to `quota` steps, fewer where `bound` is reached or `patience` steps did not help.

    load [E], capacity [R]: slots of each rank, most: replicas an expert may have, bound: no largest GPU load is below.
    All else is the state of the search, changed in place: order [E] of the experts, the heaviest replica first, counts
    and best_counts [E], best_slot [R, S] with -1 for holes, top and steps (see above).
    """
    experts, ranks = len(load), len(capacity)
    slot = np.empty_like(best_slot)
    held = np.zeros((ranks, experts), np.int16)
    gpu = np.empty(ranks)
    filled = np.empty(ranks, np.int64)
    share = np.empty(experts)
    key = np.empty(experts)
    trial = np.empty_like(counts)
    for _ in range(quota):
        if top[BEST] <= bound * (1 + 1e-9) or steps[STALE] >= patience:
            return
        phase = (steps[STALE] // PERIOD) % len(HEAT)
        if steps[STALE] % (PERIOD * len(HEAT)) == 0:
            counts[:] = best_counts
            top[NOW] = top[BEST]
        trial[:] = counts
        first = steps[TAKEN] == 0
        shake = SHAKE * fraction(random) ** 3
        if not first:
            change_counts(trial, most, random)
        for expert in range(experts):
            share[expert] = load[expert] / trial[expert]
            key[expert] = share[expert] * (1 if first else 1 + shake * fraction(random))
        sort_descending(key, order)
        pack(share, trial, order, capacity, slot, held, gpu, filled)
        even_out(share, capacity, slot, held, gpu)
        found = gpu.max()
        for rank in range(ranks):
            for at in range(capacity[rank]):
                if slot[rank, at] >= 0:
                    held[rank, slot[rank, at]] = 0
        steps[TAKEN] += 1
        steps[STALE] += 1
        heat = HEAT[phase] * top[NOW]
        if found <= top[NOW] or (heat > 0 and fraction(random) < np.exp((top[NOW] - found) / heat)):
            top[NOW] = found
            counts[:] = trial
        if found < top[BEST]:
            top[BEST] = found
            best_counts[:] = trial
            best_slot[:] = slot
            steps[STALE] = 0


@compiled
def greedy_counts(load: Floats, slots: int, most: int, counts: Experts) -> None:
    """One replica for each of E experts, then one more at a time, `slots` in all, for the largest replica load."""
    counts[:] = 1
    for _ in range(slots - len(load)):
        taker = -1
        for expert in range(len(load)):
            if counts[expert] < most and (taker < 0 or load[expert] / counts[expert] > load[taker] / counts[taker]):
                taker = expert
        if taker < 0:
            return
        counts[taker] += 1


@inner
def change_counts(counts: Experts, most: int, random: Words) -> None:
    """Take a replica from an expert that has several and give it to another, a few times."""
    experts = len(counts)
    changes = 1
    while changes < CHANGES and fraction(random) < AGAIN:
        changes += 1
    for _ in range(changes):
        taker = below(random, experts)
        giver = below(random, experts)
        tries = 0
        while counts[giver] < 2 and tries < 4 * experts:
            giver = below(random, experts)
            tries += 1
        if counts[giver] > 1 and counts[taker] < most and giver != taker:
            counts[giver] -= 1
            counts[taker] += 1


@inner
def sort_descending(key: Floats, order: Ints) -> None:
    """Put `order` in descending order of `key`, by insertion: quick where it nearly is already."""
    for i in range(1, len(order)):
        item = order[i]
        value = key[item]
        j = i - 1
        while j >= 0 and key[order[j]] < value:
            order[j + 1] = order[j]
            j -= 1
        order[j + 1] = item


@inner
def pack(
    share: Floats, counts: Experts, order: Ints, capacity: Ints, slot: Experts, held: Held, gpu: Floats, filled: Ints
) -> None:
    """Fill `slot` [R, S], -1 where nothing is left for a slot, in the `order` of the experts.

    Two replicas of an expert share a rank only where neither another rank nor another expert can give way.
    """
    ranks = len(capacity)
    slot[:] = -1
    gpu[:] = 0.0
    filled[:] = 0
    for expert in order:
        for _ in range(counts[expert]):
            rank, least = -1, np.inf
            for r in range(ranks):
                if gpu[r] < least and filled[r] < capacity[r] and held[r, expert] == 0:
                    rank, least = r, gpu[r]
            if rank < 0:
                rank = make_room(expert, share, capacity, slot, held, gpu, filled)
            slot[rank, filled[rank]] = expert
            filled[rank] += 1
            held[rank, expert] += 1
            gpu[rank] += share[expert]


@inner
def make_room(expert: int, share: Floats, capacity: Ints, slot: Experts, held: Held, gpu: Floats, filled: Ints) -> int:
    """A rank with room for `expert`, where all that have room hold it: a replica of another expert moves over there."""
    ranks = len(capacity)
    room = -1
    for r in range(ranks):
        if filled[r] < capacity[r] and (room < 0 or gpu[r] < gpu[room]):
            room = r
    giver, place = -1, 0
    least = np.inf
    for r in range(ranks):
        if held[r, expert] > 0:
            continue
        for at in range(filled[r]):
            other = slot[r, at]
            if held[room, other] > 0:
                continue
            larger = max(gpu[r] + share[expert] - share[other], gpu[room] + share[other])
            if larger < least:
                least, giver, place = larger, r, at
    if giver < 0:
        return room
    other = slot[giver, place]
    slot[room, filled[room]] = other
    filled[room] += 1
    held[room, other] += 1
    gpu[room] += share[other]
    filled[giver] -= 1
    slot[giver, place] = slot[giver, filled[giver]]
    slot[giver, filled[giver]] = -1
    held[giver, other] -= 1
    gpu[giver] -= share[other]
    return giver


@inner
def even_out(share: Floats, capacity: Ints, slot: Experts, held: Held, gpu: Floats) -> None:
    """Exchange a replica of the fullest rank for a replica or a hole of another, the best pair first, while it helps."""
    ranks = len(capacity)
    while True:
        full = int(np.argmax(gpu))
        top = gpu[full]
        least = top * (1 - 1e-12)
        at, other, there = -1, -1, -1
        for rank in range(ranks):
            if top + gpu[rank] >= 2 * least:  # at best both come to the mean of the two
                continue
            for i in range(capacity[full]):
                expert = slot[full, i]
                if expert < 0 or held[rank, expert] > 0:
                    continue
                left = top - share[expert]
                more = gpu[rank] + share[expert]
                for j in range(capacity[rank]):
                    back = slot[rank, j]
                    load = share[back] if back >= 0 else 0.0
                    larger = max(left + load, more - load)
                    if larger < least and (back < 0 or held[full, back] == 0):
                        least, at, other, there = larger, i, rank, j
        if at < 0:
            return
        expert, back = slot[full, at], slot[other, there]
        moved = share[expert]
        held[full, expert] -= 1
        held[other, expert] += 1
        if back >= 0:
            moved -= share[back]
            held[other, back] -= 1
            held[full, back] += 1
        slot[full, at], slot[other, there] = back, expert
        gpu[full] -= moved
        gpu[other] += moved
