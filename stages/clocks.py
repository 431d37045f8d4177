"""When ranks are done that send and receive group by group: the compiled heart of `stages.cost`."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from stages.compiled import compiled, inner
from stages.transfers import Ints

Floats = npt.NDArray[np.float64]
FABRIC, NETWORK = 0, 2


@compiled
def finish_times(
    part: Ints,
    group: Ints,
    src: Ints,
    dst: Ints,
    nbytes: Floats,
    messages: float,
    gpus: int,
    speed: Floats,
    latency: Floats,
    curve_begin: Ints,
    curve_size: Floats,
    curve_seconds: Floats,
    node_speed: float,
    ready: Floats,
    after: Floats,
    barrier: bool,
) -> Floats:
    """[parts]: when the last rank is done with each part (a layer, a batch).

    Hops [N] come in order of `part` and `group`, which is different in different parts. In a group a rank begins all
    its hops at once when it and the peer are there, and leaves when all are done. The hops of a group that share a
    link, with so many `messages` each, take together what the link takes for all; those that share a node's link get
    it one after the other. `speed`, `latency`, `curve_*` [2]: the fabric's and the network's, in bytes and seconds.
    `ready` [parts]: when a part may begin. `after` [parts, R]: what each rank does once a part has arrived. With
    `barrier` all wait for the last then.
    """
    parts, ranks = after.shape
    clock, leaves, node_free = np.zeros(ranks), np.zeros(ranks), np.zeros((2, ranks // gpus))
    size, count, busy = np.zeros((4, ranks)), np.zeros((4, ranks)), np.zeros((4, ranks))
    done = np.zeros(parts)
    begin = 0
    for p in range(parts):
        clock = np.maximum(clock, ready[p])
        while begin < len(part) and part[begin] == p:
            end = begin
            while end < len(part) and group[end] == group[begin]:
                way = FABRIC if src[end] // gpus == dst[end] // gpus else NETWORK
                for side, rank in ((way, src[end]), (way + 1, dst[end])):
                    size[side, rank] += nbytes[end]
                    count[side, rank] += messages
                end += 1
            for e in range(begin, end):
                way = FABRIC if src[e] // gpus == dst[e] // gpus else NETWORK
                for side, rank in ((way, src[e]), (way + 1, dst[e])):
                    if busy[side, rank] == 0:
                        busy[side, rank] = count[side, rank] * latency[way // 2] + _moving(
                            size[side, rank], speed[way // 2],
                            curve_size[curve_begin[way // 2] : curve_begin[way // 2 + 1]],
                            curve_seconds[curve_begin[way // 2] : curve_begin[way // 2 + 1]],
                        )  # fmt: skip
            for e in range(begin, end):
                crosses = src[e] // gpus != dst[e] // gpus
                way = NETWORK if crosses else FABRIC
                start = max(clock[src[e]], clock[dst[e]])
                finish = start + max(busy[way, src[e]], busy[way + 1, dst[e]])
                if crosses:
                    for side, node in ((0, src[e] // gpus), (1, dst[e] // gpus)):
                        node_free[side, node] = max(node_free[side, node], start) + nbytes[e] / node_speed
                        finish = max(finish, node_free[side, node])
                leaves[src[e]], leaves[dst[e]] = max(leaves[src[e]], finish), max(leaves[dst[e]], finish)
            for e in range(begin, end):
                for rank in (src[e], dst[e]):
                    clock[rank] = max(clock[rank], leaves[rank])
                    size[:, rank], count[:, rank], busy[:, rank] = 0, 0, 0
            begin = end
        clock += after[p]
        done[p] = clock.max()
        if barrier:
            clock[:] = done[p]
    return done


@inner
def _moving(nbytes: float, speed: float, sizes: Floats, seconds: Floats) -> float:
    """As `Link.seconds`, without the latency."""
    if len(sizes) == 0:
        return nbytes / speed
    return np.interp(nbytes, sizes, seconds) + max(nbytes - sizes[-1], 0.0) / speed
