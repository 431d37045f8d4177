"""From the placement that is there towards a better one, by moves that pay.

Each step looks at the fullest GPU and takes the move that lowers most, for what it costs, the sum over GPUs of the
squared load above `top`, the largest GPU load that is aimed at. A move is one of

    exchange  a replica of the fullest GPU and a replica, or a hole, of another
    replace   a replica on the fullest GPU by one of another expert, which takes load off the GPUs that hold that one
    relieve   a replica, or a hole, elsewhere by one of an expert of the fullest GPU

A move costs what it brings to GPUs that did not hold it at the start, and gives back what it undoes. On the way the best
placement for each number of moved slots is recorded: the front.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from stages.solvers.kernels.compiled import Experts, Floats, Held, Ints, Words, compiled, inner
from stages.solvers.kernels.draws import fraction

FREE = 0.25
"""What a move counts at least, in experts brought within a node: one that undoes others must still help."""
COST, MOVED = 0, 1  # of `spent`


@compiled
def approach(
    load: Floats,
    capacity: Ints,
    most: int,
    weight: npt.NDArray[np.float32],
    start: Experts,
    top: float,
    noise: float,
    random: Words,
    stride: int,
    front_top: Floats,
    front_cost: Floats,
    front_moved: Ints,
    front_slot: Experts,
) -> None:
    """Walk from `start` [R, S] (-1 for holes) until no GPU load is above `top` or no move helps; record the front.

    load [E], capacity [R]: slots of each rank, most: replicas an expert may have, weight [E, R]: the cost of bringing an
    expert to a rank, 0 where `start` holds it, noise: how much the choice of a move is left to chance. Entry k of the
    front is for up to k x stride moved slots: largest GPU load, cost, moved slots and the placement [R, S].
    """
    ranks, experts = len(capacity), len(load)
    slot = start.copy()
    held = np.zeros((ranks, experts), np.int16)
    counts = np.zeros(experts, np.int32)
    holder = np.empty((experts, start.size), np.int32)
    gpu = np.zeros(ranks)
    change = np.zeros(ranks)
    spent = np.zeros(2)
    for rank in range(ranks):
        for at in range(capacity[rank]):
            expert = int(slot[rank, at])
            if expert >= 0:
                held[rank, expert] += 1
                holder[expert, counts[expert]] = rank
                counts[expert] += 1
    for expert in range(experts):
        for n in range(counts[expert]):
            gpu[holder[expert, n]] += load[expert] / counts[expert]
    for _ in range(4 * start.size):
        moved = int(spent[MOVED])
        entry = (moved + stride - 1) // stride
        largest = gpu.max()
        if entry >= len(front_top):
            return
        if largest < front_top[entry] or (largest == front_top[entry] and spent[COST] < front_cost[entry]):
            front_top[entry] = largest
            front_cost[entry] = spent[COST]
            front_moved[entry] = moved
            front_slot[entry] = slot
        if largest <= top:
            return
        rank, at, other, there, expert = best_move(
            load, capacity, most, weight, slot, held, counts, holder, gpu, change, top, noise, random
        )
        if rank < 0:
            return
        if other >= 0:
            x, y = int(slot[rank, at]), int(slot[other, there])
            put(x, rank, other, load, weight, held, counts, holder, gpu, spent)
            put(y, other, rank, load, weight, held, counts, holder, gpu, spent)
            slot[rank, at], slot[other, there] = y, x
        else:
            x = int(slot[rank, at])
            spread(load, counts, holder, change, rank, x, expert)
            for r in range(ranks):
                gpu[r] += change[r]
                change[r] = 0.0
            charge(expert, rank, 1, weight, held, spent)
            holder[expert, counts[expert]] = rank
            counts[expert] += 1
            if x >= 0:
                charge(x, rank, -1, weight, held, spent)
                n = 0
                while holder[x, n] != rank:
                    n += 1
                counts[x] -= 1
                holder[x, n] = holder[x, counts[x]]
            slot[rank, at] = expert


@inner
def best_move(
    load: Floats,
    capacity: Ints,
    most: int,
    weight: npt.NDArray[np.float32],
    slot: Experts,
    held: Held,
    counts: Experts,
    holder: Experts,
    gpu: Floats,
    change: Floats,
    top: float,
    noise: float,
    random: Words,
) -> tuple[int, int, int, int, int]:
    """(rank, slot, other rank, its slot, -1) to exchange, (rank, slot, -1, -1, expert) to replace; rank -1 for none."""
    ranks, experts = len(capacity), len(load)
    full = int(np.argmax(gpu))
    above = excess(gpu[full], top)
    best = 1e-12 * above
    found = (-1, -1, -1, -1, -1)
    for rank in range(ranks):
        if rank != full and gpu[rank] >= top:
            continue
        before = above + excess(gpu[rank], top)
        for at in range(capacity[rank]):
            there = int(slot[rank, at])
            small = load[there] / counts[there] if there >= 0 else 0.0
            if rank != full and (there < 0 or held[full, there] == 0):
                for i in range(capacity[full]):
                    expert = int(slot[full, i])
                    if expert < 0 or held[rank, expert] > 0:
                        continue
                    less = load[expert] / counts[expert] - small
                    if less <= 0:
                        continue
                    gain = before - excess(gpu[full] - less, top) - excess(gpu[rank] + less, top)
                    if gain <= best * FREE:
                        continue
                    cost = price(expert, full, rank, weight, held) + price(there, rank, full, weight, held)
                    score = gain / max(cost, FREE) * (1 + noise * fraction(random))
                    if score > best:
                        best, found = score, (full, i, rank, at, -1)
            if (there >= 0 and counts[there] < 2) or (rank == full and there < 0):
                continue
            for i in range(experts if rank == full else capacity[full]):
                expert = i if rank == full else int(slot[full, i])
                if expert < 0 or held[rank, expert] > 0 or counts[expert] >= most:
                    continue
                gain = replacing(load, counts, holder, gpu, change, rank, there, expert, top)
                if gain <= best * FREE:
                    continue
                cost = price(expert, -1, rank, weight, held) + price(there, rank, -1, weight, held)
                score = gain / max(cost, FREE) * (1 + noise * fraction(random))
                if score > best:
                    best, found = score, (rank, at, -1, -1, expert)
    return found


@inner
def excess(load: float, top: float) -> float:
    """The square of what `load` is above `top`."""
    return (load - top) * (load - top) if load > top else 0.0


@inner
def price(expert: int, source: int, target: int, weight: npt.NDArray[np.float32], held: Held) -> float:
    """What it costs to take a replica from rank `source` to rank `target` (-1: from or to nowhere); a hole is free."""
    cost = 0.0
    if expert >= 0:
        if target >= 0 and held[target, expert] == 0:
            cost += weight[expert, target]
        if source >= 0 and held[source, expert] == 1:
            cost -= weight[expert, source]
    return cost


@inner
def charge(expert: int, rank: int, by: int, weight: npt.NDArray[np.float32], held: Held, spent: Floats) -> None:
    """`rank` holds one more replica of `expert`, or one fewer, `by` being 1 or -1; account for what it costs."""
    one = held[rank, expert] == (0 if by > 0 else 1)
    held[rank, expert] += by
    if one and weight[expert, rank] > 0:
        spent[COST] += by * weight[expert, rank]
        spent[MOVED] += by


@inner
def put(
    expert: int,
    source: int,
    target: int,
    load: Floats,
    weight: npt.NDArray[np.float32],
    held: Held,
    counts: Experts,
    holder: Experts,
    gpu: Floats,
    spent: Floats,
) -> None:
    """Take a replica (or a hole) from rank `source` to rank `target`."""
    if expert < 0:
        return
    charge(expert, source, -1, weight, held, spent)
    charge(expert, target, 1, weight, held, spent)
    n = 0
    while holder[expert, n] != source:
        n += 1
    holder[expert, n] = target
    gpu[source] -= load[expert] / counts[expert]
    gpu[target] += load[expert] / counts[expert]


@inner
def spread(load: Floats, counts: Experts, holder: Experts, change: Floats, rank: int, old: int, new: int) -> None:
    """Add to `change` [R] what replacing a replica of `old` (or a hole) on `rank` by one of `new` does to GPU loads."""
    if old >= 0:
        share = load[old] / counts[old]
        larger = load[old] / (counts[old] - 1)
        for n in range(counts[old]):
            change[holder[old, n]] += larger - share
        change[rank] -= larger
    share = load[new] / counts[new]
    smaller = load[new] / (counts[new] + 1)
    for n in range(counts[new]):
        change[holder[new, n]] += smaller - share
    change[rank] += smaller


@inner
def replacing(
    load: Floats,
    counts: Experts,
    holder: Experts,
    gpu: Floats,
    change: Floats,
    rank: int,
    old: int,
    new: int,
    top: float,
) -> float:
    """How much replacing `old` on `rank` by `new` lowers the sum of squares above `top`. Leaves `change` all 0."""
    spread(load, counts, holder, change, rank, old, new)
    gain = settled(rank, gpu, change, top)
    for n in range(counts[old] if old >= 0 else 0):
        gain += settled(holder[old, n], gpu, change, top)
    for n in range(counts[new]):
        gain += settled(holder[new, n], gpu, change, top)
    return gain


@inner
def settled(rank: int, gpu: Floats, change: Floats, top: float) -> float:
    """What `change` takes off the excess of `rank`; its change is 0 after that, so that it counts once."""
    gain = excess(gpu[rank], top) - excess(gpu[rank] + change[rank], top)
    change[rank] = 0.0
    return gain
