"""What each node lacks, item by item: the groups that relays serve."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stages.needs import Needs
from stages.transfers import Ints


@dataclass(frozen=True)
class Groups:
    """[G]: the needs of one item on one node each, in order of (item, node).

    need_begin, need_end:     its needs, as indices into those of `Needs`
    near_begin, near_end:     the holders on the node, as indices into `Needs.holders`; none where it must cross
    holder_begin, holder_end: all holders of the item
    """

    item: Ints
    layer: Ints
    node: Ints
    need_begin: Ints
    need_end: Ints
    near_begin: Ints
    near_end: Ints
    holder_begin: Ints
    holder_end: Ints

    @property
    def crosses(self) -> npt.NDArray[np.bool_]:
        """[G]: whether no rank of the node holds the item, so that it must come from another node, once."""
        return self.near_begin == self.near_end


def group_needs(needs: Needs, gpus_per_node: int) -> Groups:
    nodes = -(-needs.ranks // gpus_per_node)
    keys = needs.item * nodes + needs.rank // gpus_per_node
    held = needs.holders.item * nodes + needs.holders.rank // gpus_per_node
    begin = np.flatnonzero(np.diff(keys, prepend=-1))
    key = keys[begin]
    item = key // nodes
    return Groups(
        item=item,
        layer=item // needs.experts,
        node=key % nodes,
        need_begin=begin,
        need_end=np.append(begin[1:], len(keys)),
        near_begin=np.searchsorted(held, key, "left"),
        near_end=np.searchsorted(held, key, "right"),
        holder_begin=np.searchsorted(needs.holders.item, item, "left"),
        holder_end=np.searchsorted(needs.holders.item, item, "right"),
    )
