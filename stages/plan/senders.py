"""Which holder sends each crossing, so that the busiest network link has as little to do as can be.

Layer by layer first (`layer_balance`), then over the whole plan, as a flow: crossing -> sending GPU -> its node -> out. While the busiest link is above what must be, units are
pushed off it along augmenting paths (breadth first, as Edmonds and Karp do), to the next lower level. Without rails
that ends at the least possible maximum. With rails a sender decides the receiving GPU too (GPU i to GPU i), whose
link then limits the steps of a path; that is no flow any more, and the tests compare it with the linear program.
"""

from __future__ import annotations

import numpy as np

from stages.compiled import compiled, inner
from stages.plan.crossings import Crossings, Links
from stages.plan.layer_balance import balance_layers
from stages.transfers import Ints

TRIES = 50
SHAKES = 20
CLOSE = 1e-9
"""What times differ by, relatively, that are taken for equal; rooms are rounded by less, so that the busiest link never
has room for all that it has."""
NONE = -1


def choose_senders(
    layer: Ints,
    node: Ints,
    begin: Ints,
    end: Ints,
    holder_rank: Ints,
    ranks: int,
    gpus: int,
    rails: bool,
    gpu_seconds: float,
    node_seconds: float,
    enough: float,
) -> Ints:
    """[C]: of each crossing into `node`, the index of its sender among the holders `begin` to `end`.

    Crossings come in order of layer. `gpu_seconds`, `node_seconds`: of one on a GPU's network link and on a node's.
    Links that are busy for `enough` seconds or less need not be relieved.
    """
    crossings = Crossings(layer, node, begin, end, holder_rank, ranks, gpus, rails)
    chosen = balance_layers(crossings, gpu_seconds, node_seconds)
    _balance_all(chosen, crossings, gpu_seconds, node_seconds, enough)
    return chosen


@compiled
def _balance_all(chosen: Ints, crossings: Crossings, gpu_seconds: float, node_seconds: float, enough: float) -> None:
    """Change senders until the busiest link has `enough` to do, or as little as can be."""
    ranks, gpus, node, holder_rank = crossings.ranks, crossings.gpus, crossings.node, crossings.holder_rank
    nodes = ranks // gpus
    # The crossings of each link out of or into a GPU, as linked lists; nodes need none, their ranks have them.
    first, after = np.full(2 * ranks + nodes, NONE, np.int64), np.full((2, len(chosen)), NONE, np.int64)
    load = np.zeros_like(first)
    for c in range(len(chosen)):
        rank = holder_rank[chosen[c]]
        _enter(c, rank, node[c], gpus, nodes, first, after)
        load[rank] += 1
        load[ranks + rank // gpus] += 1
        if crossings.rails:
            load[ranks + nodes + node[c] * gpus + rank % gpus] += 1
    seconds = np.concatenate((np.full(ranks, gpu_seconds), np.full(nodes, node_seconds), np.full(ranks, gpu_seconds)))
    while True:
        below = (load * seconds).max() * (1 - CLOSE)
        if below <= enough:  # equal seconds of different links may differ in their last bits
            return
        level = max(np.floor(below / gpu_seconds) * gpu_seconds, np.floor(below / node_seconds) * node_seconds, enough)
        links = Links(np.floor(level / seconds * (1 + CLOSE / 1000)).astype(np.int64), load, first, after)
        for link in range(len(load)):
            while load[link] > links.room[link]:
                shakes = 0
                while not _relieve(link, chosen, crossings, links):
                    if not crossings.rails or shakes == SHAKES:
                        return
                    _shake(shakes, chosen, crossings, links)
                    shakes += 1


@inner
def _relieve(link: int, chosen: Ints, crossings: Crossings, links: Links) -> bool:
    """Take one hop off `link` by a chain of changes after which no other link has more than its room; if there is one.

    Breadth first over links: out of ranks, out of nodes, into ranks. To come to one means that it has one too many.
    """
    node, holder_rank, ranks, gpus = crossings.node, crossings.holder_rank, crossings.ranks, crossings.gpus
    nodes, room, load = ranks // gpus, links.room, links.load
    came_from, moved, to = np.full_like(load, NONE), np.full_like(load, NONE), np.full_like(load, NONE)
    spared = np.full_like(load, NONE)  # the node that a hop has left, which therefore has room for one more
    seen = np.zeros(len(load), np.bool_)
    queue = np.empty_like(load)
    seen[link], queue[0], head, tail, tried = True, link, 0, 1, 0
    if link < ranks:
        spared[link] = link // gpus
    while head < tail:
        here = queue[head]
        head += 1
        if ranks <= here < ranks + nodes:
            for rank in range((here - ranks) * gpus, (here - ranks + 1) * gpus):
                if not seen[rank] and load[rank] > 0:
                    seen[rank] = True
                    came_from[rank], spared[rank] = here, spared[here]
                    queue[tail] = rank
                    tail += 1
            continue
        enters = here >= ranks + nodes
        c = links.first[here]
        while c != NONE:
            left = holder_rank[chosen[c]] // gpus if enters else spared[here]
            for option in range(crossings.begin[c], crossings.end[c]):
                rank = holder_rank[option]
                if rank == holder_rank[chosen[c]]:
                    continue
                at, entry = ranks + rank // gpus, ranks + nodes + node[c] * gpus + rank % gpus
                out_full = load[rank] >= room[rank]
                in_full = crossings.rails and load[entry] >= room[entry]
                node_full = not out_full and load[at] - (rank // gpus == left) >= room[at]
                if out_full + in_full + node_full > 1:
                    continue
                if not (out_full or in_full or node_full):
                    if seen[rank]:  # it stands in another path already
                        continue
                    came_from[rank], moved[rank], to[rank] = here, c, option
                    if _move_along(rank, link, came_from, moved, to, chosen, crossings, links):
                        return True
                    tried += 1
                    if tried == TRIES:
                        return False
                    continue
                full = rank if out_full else entry if in_full else at
                if not seen[full]:
                    seen[full] = True
                    came_from[full], moved[full], to[full] = here, c, option
                    spared[full] = left
                    queue[tail] = full
                    tail += 1
            c = links.after[1 if enters else 0, c]
    return False


@inner
def _shake(seed: int, chosen: Ints, crossings: Crossings, links: Links) -> None:
    """Change senders at random, to others whose links have room: another start for paths that rails have blocked."""
    node, holder_rank, ranks, gpus = crossings.node, crossings.holder_rank, crossings.ranks, crossings.gpus
    begin, end, nodes, room, load = crossings.begin, crossings.end, ranks // gpus, links.room, links.load
    state = np.int64(seed * 2 + 1)
    for c in range(len(chosen)):
        state = (state * 1103515245 + 12345) % 2147483648
        option = begin[c] + (state >> 8) % (end[c] - begin[c])
        old, new = holder_rank[chosen[c]], holder_rank[option]
        entry = ranks + nodes + node[c] * gpus + new % gpus
        at = ranks + new // gpus
        if old == new or load[new] >= room[new] or load[entry] >= room[entry]:
            continue
        if old // gpus != new // gpus and load[at] >= room[at]:
            continue
        _change(c, option, chosen, crossings, links)


@inner
def _change(c: int, option: int, chosen: Ints, crossings: Crossings, links: Links) -> None:
    """Have holder `option` send crossing `c`."""
    node, holder_rank, ranks, gpus = crossings.node, crossings.holder_rank, crossings.ranks, crossings.gpus
    nodes, load, first, after = ranks // gpus, links.load, links.first, links.after
    old, new = holder_rank[chosen[c]], holder_rank[option]
    _leave(c, old, node[c], gpus, nodes, first, after)
    _enter(c, new, node[c], gpus, nodes, first, after)
    chosen[c] = option
    for rank, step in ((old, -1), (new, 1)):
        load[rank] += step
        load[ranks + rank // gpus] += step
        if crossings.rails:
            load[ranks + nodes + node[c] * gpus + rank % gpus] += step


@inner
def _move_along(
    last: int, start: int, came_from: Ints, moved: Ints, to: Ints, chosen: Ints, crossings: Crossings, links: Links
) -> bool:
    """Carry out the changes of the path that ends at link `last`; take them back if together they are too much."""
    node, holder_rank, ranks, gpus = crossings.node, crossings.holder_rank, crossings.ranks, crossings.gpus
    nodes, room, load = ranks // gpus, links.room, links.load
    before = load.copy()
    undo = np.full_like(to, NONE)
    for way in range(2):
        link, fits = last, True
        while link != NONE:
            c = moved[link]
            if c != NONE:
                if way == 0:
                    undo[link] = chosen[c]
                option = to[link] if way == 0 else undo[link]
                _change(c, option, chosen, crossings, links)
            link = came_from[link]
        if way == 0:
            link = last
            while link != NONE:
                c = moved[link]
                if c != NONE:
                    rank = holder_rank[to[link]]
                    for touched in (rank, ranks + rank // gpus, ranks + nodes + node[c] * gpus + rank % gpus):
                        fits = fits and load[touched] <= max(room[touched], before[touched])
                link = came_from[link]
            if fits and load[start] < before[start]:
                return True
    return False


@inner
def _enter(c: int, rank: int, node: int, gpus: int, nodes: int, first: Ints, after: Ints) -> None:
    """Put crossing `c`, sent by `rank` into `node`, on the lists of its two links."""
    for side, link in ((0, rank), (1, nodes * gpus + nodes + node * gpus + rank % gpus)):
        after[side, c], first[link] = first[link], c


@inner
def _leave(c: int, rank: int, node: int, gpus: int, nodes: int, first: Ints, after: Ints) -> None:
    for side, link in ((0, rank), (1, nodes * gpus + nodes + node * gpus + rank % gpus)):
        if first[link] == c:
            first[link] = after[side, c]
        else:
            other = first[link]
            while after[side, other] != c:
                other = after[side, other]
            after[side, other] = after[side, c]
