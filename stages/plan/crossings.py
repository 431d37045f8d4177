"""What the compiled search for senders works on."""

from __future__ import annotations

from typing import NamedTuple

from stages.transfers import Ints


class Crossings(NamedTuple):
    """C crossings into `node` [C], in order of `layer` [C], which the holders `begin` to `end` [C] can send, on the ranks
    `holder_rank`; `gpus` of each node, and whether GPU i sends to GPU i (`rails`)."""

    layer: Ints
    node: Ints
    begin: Ints
    end: Ints
    holder_rank: Ints
    ranks: int
    gpus: int
    rails: bool


class Links(NamedTuple):
    """Links out of ranks, out of nodes, into ranks: how many hops each may have (`room`) and has (`load`), and those of
    links of ranks as linked lists: the `first` of each, and the one `after` each crossing, going out and coming in."""

    room: Ints
    load: Ints
    first: Ints
    after: Ints
