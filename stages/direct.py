"""The semantics of a direct transfer: who sends what to whom, for every layer and rank at once.

These are the published semantics of SGLang's expert location updater, which engines rely on. A slot that the new map
fills with another expert is one of

    same_gpu     a slot of its rank holds the expert in the old map: copied from the first such slot
    free_rider   an earlier slot of its rank receives the expert: copied from there
    same_node    a rank of its node holds the expert: received from one of these
    cross_node   received from a rank of another node

and an unchanged slot, or one that the new map empties, needs no row. The *source ranks* of an expert hold it in the old
map; its *needing ranks* hold it in the new map and not in the old. Needing ranks on a node that has a source rank are
split, in order, over that node's source ranks, all others, in order, over all source ranks: n items into k consecutive
chunks, the first n mod k one longer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stages.expert_map import ExpertMap
from stages.needs import Holders, Needs, needs_between
from stages.transfers import Ints, Kind, TransferPlan


def direct_transfers(
    old: ExpertMap,
    new: ExpertMap,
    ranks: int,
    gpus_per_node: int,
    expert_bytes: int,
    *,
    layer_ids: Sequence[int] | None = None,
) -> TransferPlan:
    """The rows that turn `old` into `new` (both `[L, P]`), each of `expert_bytes` bytes, all in round 0.

    Rows come in order of (layer, logical expert, kind, receiving slot), so that the network rows of one rank are its
    ops in the order in which they go out. `layer_ids` `[L]` names the layers in errors. Raises `BadInput` where the
    maps differ in shape or `new` needs an expert that `old` holds nowhere.
    """
    needs = needs_between(old, new, ranks)
    needs.check_held(layer_ids)
    return direct_rows(needs, gpus_per_node, expert_bytes)


def direct_rows(needs: Needs, gpus_per_node: int, expert_bytes: int) -> TransferPlan:
    """`direct_transfers` of needs that are all held."""
    per_rank, slots = needs.slots_per_rank, needs.slots_per_rank * needs.ranks
    chosen, near = _choose_holders(needs.holders, needs.item, needs.rank, needs.ranks, gpus_per_node)
    source = needs.holders.slot[chosen]
    parts = {
        Kind.same_gpu: needs.same_gpu,
        Kind.free_rider: needs.free_rider,
        Kind.same_node: (needs.item[near], needs.slot[near], source[near]),
        Kind.cross_node: (needs.item[~near], needs.slot[~near], source[~near]),
    }
    kind = np.concatenate([np.full(len(part[0]), kind, dtype=np.int64) for kind, part in parts.items()])
    item, slot, source = (np.concatenate(columns) for columns in zip(*parts.values(), strict=True))
    order = np.argsort((item * len(Kind) + kind) * slots + slot)
    kind, item, slot, source = kind[order], item[order], slot[order], source[order]
    return TransferPlan(
        layer=item // needs.experts,
        logical_expert=item % needs.experts,
        kind=kind,
        src_rank=source // per_rank,
        src_slot=source,
        dst_rank=slot // per_rank,
        dst_slot=slot,
        round=np.zeros(len(order), dtype=np.int64),
        bytes=np.full(len(order), expert_bytes, dtype=np.int64),
    )


def _choose_holders(
    holders: Holders, item: Ints, rank: Ints, ranks: int, gpus_per_node: int
) -> tuple[Ints, np.ndarray[tuple[int], np.dtype[np.bool_]]]:
    """[N], [N]: the index of the holder that sends to each needing rank, and whether it is on the rank's node.

    `item`, `rank` [N]: the needing ranks of each expert, in order of both.
    """
    nodes = -(-ranks // gpus_per_node)
    holder_node, node = (i * nodes + r // gpus_per_node for i, r in ((holders.item, holders.rank), (item, rank)))
    begin, end = np.searchsorted(holder_node, node, "left"), np.searchsorted(holder_node, node, "right")
    near = begin < end
    begin[~near] = np.searchsorted(holders.item, item[~near], "left")
    end[~near] = np.searchsorted(holders.item, item[~near], "right")
    chosen = begin.copy()
    chosen[near] += _split(node[near], (end - begin)[near])
    chosen[~near] += _split(item[~near], (end - begin)[~near])
    return chosen, near


def _split(group: Ints, chunks: Ints) -> Ints:
    """[N]: the chunk of each item when the items of each run of equal `group` are split over `chunks` chunks."""
    begin = np.searchsorted(group, group, "left")
    items = np.searchsorted(group, group, "right") - begin
    position = np.arange(len(group)) - begin
    size, longer = np.divmod(items, chunks)
    in_longer = longer * (size + 1)
    behind = longer + (position - in_longer) // np.maximum(size, 1)
    return np.where(position < in_longer, position // (size + 1), behind)
