"""Rounds: which hops of a layer go out together, so that each GPU talks to few peers at a time.

Without relays a round is a matching, every GPU sends to one peer at most and receives from one at most, and colouring
the edges of a bipartite graph needs as many colours as its largest degree (König 1916): each edge takes a colour that
is free at both ends, after the two colours of an alternating path have been exchanged where there is none.

With relays a hop waits for the one that brings its item. A round is then the time of one crossing: a GPU has at most
one crossing and `width` hops over its fabric at once, in each direction. Either hops take the first round that has room,
those with the longest tail of relays first, then those at the busiest GPUs (`fit`); or all are coloured as if none had to
wait, and those that come too early move to the first later round that has room (`settle`).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from stages.compiled import compiled
from stages.transfers import Ints

NONE = -1


@compiled
def colour(layer_begin: Ints, src: Ints, dst: Ints, ranks: int) -> Ints:
    """[N]: the round of each hop. Hops of layer l are those from `layer_begin[l]` to `layer_begin[l + 1]`."""
    rounds = np.full(len(src), NONE, np.int64)
    degrees = np.zeros(len(layer_begin) - 1, np.int64)
    degree = np.zeros((2, ranks), np.int64)
    for l in range(len(degrees)):
        degree[:] = 0
        for e in range(layer_begin[l], layer_begin[l + 1]):
            degree[0, src[e]] += 1
            degree[1, dst[e]] += 1
        degrees[l] = degree.max()
    # Of each end and colour, the hop that has it: senders first, then receivers.
    taken = np.full((2 * ranks, max(1, degrees.max() if len(degrees) else 1)), NONE, np.int32)
    for l in range(len(degrees)):
        colours = degrees[l]
        taken[:, :colours] = NONE
        for e in range(layer_begin[l], layer_begin[l + 1]):
            u, v = src[e], ranks + dst[e]
            a = np.int64(0)
            while taken[u, a] != NONE:
                a += 1
            b = np.int64(0)
            while taken[v, b] != NONE:
                b += 1
            if taken[v, a] != NONE:
                # From v along colours a, b, a, …: the path ends before u, which has no hop of colour a.
                end, this, other = v, a, b
                hop = taken[end, this]
                taken[end, this] = NONE
                while hop != NONE:
                    far = src[hop] if end >= ranks else ranks + dst[hop]
                    following = taken[far, other]
                    taken[end, other], taken[far, other] = hop, hop
                    rounds[hop] = other
                    if following == NONE:
                        taken[far, this] = NONE
                        break
                    end, hop, this, other = far, following, other, this
            taken[u, a], taken[v, a], rounds[e] = e, e, a
    return rounds


@compiled
def fit(
    layer_begin: Ints, order: Ints, src: Ints, dst: Ints, crosses: npt.NDArray[np.bool_], brought_by: Ints,
    ranks: int, width: int, most: int,
) -> Ints:  # fmt: skip
    """[N]: the round of each hop, none before that of the hop that `brought_by` names (-1: none) plus one.

    `order`: the hops of layer after layer, in which they choose. `most`: rounds that suffice for any layer.
    """
    rounds = np.full(len(src), NONE, np.int64)
    # Hops of each round over a GPU's network link and its fabric, sent and received.
    used = np.zeros((most, 4, ranks), np.int16)
    for l in range(len(layer_begin) - 1):
        last = np.int64(-1)
        for i in range(layer_begin[l], layer_begin[l + 1]):
            e = order[i]
            room = 1 if crosses[e] else width
            way = 0 if crosses[e] else 2
            t = np.int64(0) if brought_by[e] == NONE else rounds[brought_by[e]] + 1
            while used[t, way, src[e]] >= room or used[t, way + 1, dst[e]] >= room:
                t += 1
            used[t, way, src[e]] += 1
            used[t, way + 1, dst[e]] += 1
            rounds[e] = t
            last = max(last, t)
        used[: last + 1] = 0
    return rounds


@compiled
def settle(
    layer_begin: Ints, order: Ints, rounds: Ints, src: Ints, dst: Ints, crosses: npt.NDArray[np.bool_],
    brought_by: Ints, ranks: int, width: int, most: int,
) -> None:  # fmt: skip
    """Move the hops that come before what they forward to the first later round that has room.

    `rounds` [N] keeps to what a round has room for already. `order`: the hops of layer after layer, those that bring
    something before those that forward it.
    """
    used = np.zeros((most, 4, ranks), np.int16)
    for l in range(len(layer_begin) - 1):
        last = np.int64(-1)
        for i in range(layer_begin[l], layer_begin[l + 1]):
            e = order[i]
            way = 0 if crosses[e] else 2
            used[rounds[e], way, src[e]] += 1
            used[rounds[e], way + 1, dst[e]] += 1
            last = max(last, rounds[e])
        for i in range(layer_begin[l], layer_begin[l + 1]):
            e = order[i]
            if brought_by[e] == NONE or rounds[e] > rounds[brought_by[e]]:
                continue
            room, way = (1, 0) if crosses[e] else (width, 2)
            used[rounds[e], way, src[e]] -= 1
            used[rounds[e], way + 1, dst[e]] -= 1
            t = rounds[brought_by[e]] + 1
            while used[t, way, src[e]] >= room or used[t, way + 1, dst[e]] >= room:
                t += 1
            used[t, way, src[e]] += 1
            used[t, way + 1, dst[e]] += 1
            rounds[e] = t
            last = max(last, t)
        used[: last + 1] = 0
