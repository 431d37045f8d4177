"""A first choice of senders: in each layer by itself, every crossing goes to the holder whose links have least to do.

Crossings without a choice go first, then all others, a few times over; ties go to whoever has least to do in the layers
before.
"""

from __future__ import annotations

import numpy as np

from stages.compiled import compiled
from stages.plan.crossings import Crossings
from stages.transfers import Ints

SWEEPS = 2
NONE = -1


@compiled
def balance_layers(crossings: Crossings, gpu_seconds: float, node_seconds: float) -> Ints:
    """[C]: of each crossing, the index of its sender. As `choose_senders`, which see."""
    layer, node, begin, end, holder_rank, ranks, gpus, rails = crossings
    chosen = np.full(len(layer), NONE, np.int64)
    out, node_out, into = np.zeros(ranks, np.int64), np.zeros(ranks // gpus, np.int64), np.zeros(ranks, np.int64)
    layer_out, layer_node, layer_into = np.zeros_like(out), np.zeros_like(node_out), np.zeros_like(into)
    start = 0
    while start < len(layer):
        stop = start
        while stop < len(layer) and layer[stop] == layer[start]:
            stop += 1
        layer_out[:], layer_node[:], layer_into[:] = 0, 0, 0
        for sweep in range(SWEEPS + 1):  # those without a choice go first
            for c in range(start, stop):
                if (sweep == 0) != (end[c] - begin[c] == 1):
                    continue
                target = node[c] * gpus
                if chosen[c] != NONE:
                    rank = holder_rank[chosen[c]]
                    layer_out[rank] -= 1
                    layer_node[rank // gpus] -= 1
                    layer_into[target + rank % gpus] -= 1
                best, best_cost, best_total = NONE, np.inf, np.inf
                for option in range(begin[c], end[c]):
                    rank = holder_rank[option]
                    at, entry = rank // gpus, target + rank % gpus
                    cost = (layer_out[rank] * gpu_seconds) ** 3 + (layer_node[at] * node_seconds) ** 3
                    total = out[rank] * gpu_seconds + node_out[at] * node_seconds
                    if rails:
                        cost += (layer_into[entry] * gpu_seconds) ** 3
                        total += into[entry] * gpu_seconds
                    if cost < best_cost or (cost == best_cost and total < best_total):
                        best, best_cost, best_total = option, cost, total
                chosen[c] = best
                rank = holder_rank[best]
                layer_out[rank] += 1
                layer_node[rank // gpus] += 1
                layer_into[target + rank % gpus] += 1
        out += layer_out
        node_out += layer_node
        into += layer_into
        start = stop
    return chosen
