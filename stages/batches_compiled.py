"""The loops of stages.batches, compiled: an order of what is to be staged, and what fits into each batch."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from stages.compiled import compiled, inner
from stages.transfers import Ints

Bools = npt.NDArray[np.bool_]


@compiled
def sequence_of(layer: Ints, reads: Ints, unit_of: Ints) -> Ints:  # pragma: no cover
    """[U]: units in an order in which each comes before the one that overwrites what it reads (Kahn 1962), layer by
    layer; cycles are opened at their first unit and follow one behind the other. `reads`: of each unit's root."""
    units = len(layer)
    waits = np.zeros(units, dtype=np.int64)
    for unit in range(units):
        if reads[unit] >= 0:
            waits[unit_of[reads[unit]]] += 1
    out = np.empty(units, dtype=np.int64)
    done = np.zeros(units, dtype=np.bool_)
    count = 0
    first = 0
    while first < units:
        last = first
        while last < units and layer[last] == layer[first]:
            last += 1
        head = count
        for unit in range(first, last):
            if waits[unit] == 0:
                out[count] = unit
                done[unit] = True
                count += 1
        while head < count:
            after = unit_of[reads[out[head]]] if reads[out[head]] >= 0 else -1
            head += 1
            if after >= 0 and not done[after]:
                waits[after] -= 1
                if waits[after] == 0:
                    out[count] = after
                    done[after] = True
                    count += 1
        for unit in range(first, last):  # what is left lies on cycles
            while not done[unit]:
                out[count] = unit
                done[unit] = True
                count += 1
                unit = unit_of[reads[unit]]
        first = last
    return out


@compiled
def simulate(
    sequence: Ints, step: Ints, order: Ints, begin: Ints, reads: Ints, src: Ints, dst: Ints,
    ranks: int, rows: int, at_once: int, at_least: int, sends_at_once: int,
    slow: Bools, slow_at_once: int, early: int, lag: int,
) -> tuple[Ints, Ints, Ints, Ints]:  # pragma: no cover  # fmt: skip
    """Stage units in order of `sequence`, each rank as many as it has room for; commit what nobody waits for. Of each
    rank's rows all but one may be parked.

    A unit whose ranks have no room is passed over and bars them for the rest of the batch, so that each rank keeps
    its order. [n], [n], [n], [B]: stage, commit and row of each network row, and `after` of each batch.

    With `slow_at_once` a rank sends and receives at most so many of the `slow` rows [n] in a batch, and units that wait
    for that, or for their sender, bar nobody: those behind them may go first, where a rank has fewer than `early` rows
    parked. The first that is left is always due, so that there is one that fits.

    A row is used again when `lag` batches have passed since the one that freed it, earlier where nothing fits otherwise.
    """
    count, remaining = len(order), len(sequence)
    stage, commit, row = np.full(count, -1), np.full(count, -1), np.full(count, -1)
    readers = np.zeros(count, dtype=np.int64)
    for n in range(count):
        if reads[n] >= 0:
            readers[reads[n]] += 1
    used_by = np.full((ranks, rows), -lag)  # the batch whose commit freed this row; `count` while it is in use
    next_row = np.zeros(ranks, dtype=np.int64)
    free = np.full(ranks, rows)  # rows that no commit of the `lag` - 1 batches before holds up
    soon = np.zeros((lag, ranks), dtype=np.int64)  # [n]: rows that the n-th batch before gives back
    barred = np.empty(ranks, dtype=np.bool_)
    arriving, leaving = np.zeros(ranks, dtype=np.int64), np.zeros(ranks, dtype=np.int64)
    entering, exiting = np.zeros(ranks, dtype=np.int64), np.zeros(ranks, dtype=np.int64)
    parked, parking = np.zeros(ranks, dtype=np.int64), np.zeros(ranks, dtype=np.int64)
    lacking = np.bincount(dst, minlength=ranks)
    limit = np.empty(ranks, dtype=np.int64)
    chosen, waiting = np.empty(count, dtype=np.int64), np.empty(count, dtype=np.int64)
    after = np.empty(count, dtype=np.int64)
    left = sequence.copy()
    window = max(256, 8 * ranks * at_once)
    waiters, batch = 0, 0
    before = step[left[0]] if remaining else 0
    while remaining:
        now = step[left[0]]
        found = 0
        for rank in range(ranks):
            limit[rank] = min(at_once, max(at_least, (lacking[rank] + 3) // 4))
        for wait in range(lag, 0, -1):
            room = free + soon[wait:].sum(axis=0)
            arriving[:] = 0
            leaving[:], entering[:], exiting[:] = 0, 0, 0
            parking[:] = parked
            barred[:] = False
            bars, kept, at = 0, 0, 0
            while at < min(remaining, window) and bars < ranks:
                unit = left[at]
                if step[unit] != now:
                    break
                at += 1
                fits, bar = True, slow_at_once == 0
                most_parked = rows - 1 if slow_at_once == 0 or kept == 0 else early
                for i in range(begin[unit], begin[unit + 1]):
                    n = order[i]
                    if barred[dst[n]] or arriving[dst[n]] >= min(limit[dst[n]], room[dst[n]]):
                        fits, bar = False, True
                    if readers[n] and parking[dst[n]] >= most_parked:
                        fits = False
                    if found and slow_at_once and slow[n]:
                        fits &= entering[dst[n]] < slow_at_once and exiting[src[n]] < slow_at_once
                if leaving[src[order[begin[unit]]]] >= sends_at_once:
                    fits = False
                for i in range(begin[unit], begin[unit + 1]):
                    n = order[i]
                    if fits:
                        arriving[dst[n]] += 1
                        entering[dst[n]] += slow[n]
                        exiting[src[n]] += slow[n]
                        parking[dst[n]] += readers[n] > 0
                        if reads[n] >= 0:
                            readers[reads[n]] -= 1
                        chosen[found] = n
                        found += 1
                    elif bar and not barred[dst[n]]:
                        barred[dst[n]] = True
                        bars += 1
                if fits:
                    leaving[src[order[begin[unit]]]] += 1
                else:
                    left[kept] = unit
                    kept += 1
            if found:
                break
        if not found:
            raise RuntimeError("batches: nothing can be staged")
        left[kept : kept + remaining - at] = left[at:remaining].copy()
        remaining -= at - kept
        after[batch] = _place(chosen[:found], src, dst, ranks, used_by, next_row, batch - wait, count, row)
        if now != before:
            after[batch] = batch - 1
            before = now
        for i in range(found):
            n = chosen[i]
            stage[n] = batch
            waiting[waiters] = n
            waiters += 1
        free += soon[lag - 1] - arriving
        lacking -= arriving
        for n in range(lag - 1, 1, -1):
            soon[n] = soon[n - 1]
        soon[1] = 0
        parked[:] = 0
        kept = 0
        for i in range(waiters):
            n = waiting[i]
            if readers[n] == 0:
                commit[n] = batch
                used_by[dst[n], row[n]] = batch
                soon[1, dst[n]] += 1
            else:
                parked[dst[n]] += 1
                waiting[kept] = n
                kept += 1
        waiters = kept
        batch += 1
    return stage, commit, row, after[:batch]


@inner
def _place(
    chosen: Ints,
    src: Ints,
    dst: Ints,
    ranks: int,
    used_by: Ints,
    next_row: Ints,
    latest_use: int,
    in_use: int,
    row: Ints,
) -> int:  # pragma: no cover
    """Give each row of a batch a place in its receiver's staging, round and round, so that what was freed longest ago
    comes first; those of one sender side by side where possible. The last batch that must have been committed before."""
    latest = -1
    for i in np.argsort(dst[chosen] * ranks + src[chosen], kind="mergesort"):
        n = chosen[i]
        rank = dst[n]
        while used_by[rank, next_row[rank]] > latest_use:
            next_row[rank] = (next_row[rank] + 1) % used_by.shape[1]
        row[n] = next_row[rank]
        latest = max(latest, used_by[rank, row[n]])
        used_by[rank, row[n]] = in_use
    return latest
