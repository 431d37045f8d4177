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
from typing import NamedTuple

import numpy as np

from stages.errors import BadInput
from stages.expert_map import EMPTY, ExpertMap, slots_per_rank
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
    if old.shape != new.shape:
        raise BadInput(f"The old map has shape {list(old.shape)}, the new one {list(new.shape)}; they must agree.")
    slots, per_rank = new.shape[1], slots_per_rank(new, ranks)
    if min(old.min(initial=EMPTY), new.min(initial=EMPTY)) < EMPTY:
        raise BadInput("A map holds an expert below 0; allowed are logical experts, and -1 for an empty slot.")
    experts = max(1, int(max(old.max(initial=EMPTY), new.max(initial=EMPTY))) + 1)

    # Below, an expert of a layer is one number, layer * experts + logical expert, so that sorting groups by both.
    layer, slot = np.nonzero(old != EMPTY)
    holders = _holders(layer * experts + old[layer, slot], slot, ranks, per_rank)
    layer, slot = np.nonzero((new != old) & (new != EMPTY))
    expert = layer * experts + new[layer, slot]

    held_at = np.searchsorted(holders.key, expert * ranks + slot // per_rank)
    local = np.append(holders.key, -1)[held_at] == expert * ranks + slot // per_rank
    same_gpu = expert[local], slot[local], holders.slot[held_at[local]]

    # Of the slots of a rank that want the same absent expert, the first receives and the others ride along.
    expert, slot = expert[~local], slot[~local]
    _, first, of = np.unique(expert * ranks + slot // per_rank, return_index=True, return_inverse=True)
    receiving = slot[first][of]
    rides = slot != receiving
    free_rider = expert[rides], slot[rides], receiving[rides]

    expert, slot = expert[first], slot[first]
    _check_held(holders, expert, slot, experts, per_rank, layer_ids)
    chosen, near = _choose_holders(holders, expert, slot // per_rank, ranks, gpus_per_node)
    source = holders.slot[chosen]

    parts = {
        Kind.same_gpu: same_gpu,
        Kind.free_rider: free_rider,
        Kind.same_node: (expert[near], slot[near], source[near]),
        Kind.cross_node: (expert[~near], slot[~near], source[~near]),
    }
    kind = np.concatenate([np.full(len(part[0]), kind, dtype=np.int64) for kind, part in parts.items()])
    expert, slot, source = (np.concatenate(columns) for columns in zip(*parts.values(), strict=True))
    order = np.argsort((expert * len(Kind) + kind) * slots + slot)
    kind, expert, slot, source = kind[order], expert[order], slot[order], source[order]
    return TransferPlan(
        layer=expert // experts,
        logical_expert=expert % experts,
        kind=kind,
        src_rank=source // per_rank,
        src_slot=source,
        dst_rank=slot // per_rank,
        dst_slot=slot,
        round=np.zeros(len(order), dtype=np.int64),
        bytes=np.full(len(order), expert_bytes, dtype=np.int64),
    )


class _Holders(NamedTuple):
    """The ranks that hold each expert, in order of (expert, rank), with their first slot of it."""

    key: Ints  # expert * ranks + rank
    expert: Ints
    rank: Ints
    slot: Ints


def _holders(expert: Ints, slot: Ints, ranks: int, per_rank: int) -> _Holders:
    """`expert`, `slot`: what is held where, in ascending order of slot."""
    key, first = np.unique(expert * ranks + slot // per_rank, return_index=True)
    return _Holders(key, key // ranks, key % ranks, slot[first])


def _check_held(
    holders: _Holders, expert: Ints, slot: Ints, experts: int, per_rank: int, layer_ids: Sequence[int] | None
) -> None:
    unheld = np.flatnonzero(~np.isin(expert, holders.expert))
    if len(unheld):
        index, logical_expert = divmod(int(expert[unheld[0]]), experts)
        layer, needed_in = index if layer_ids is None else layer_ids[index], int(slot[unheld[0]])
        raise BadInput(
            f"layer {layer}: logical expert {logical_expert} is needed in slot {needed_in} "
            f"(rank {needed_in // per_rank}), and no slot of the old map holds it."
        )


def _choose_holders(
    holders: _Holders, expert: Ints, rank: Ints, ranks: int, gpus_per_node: int
) -> tuple[Ints, np.ndarray[tuple[int], np.dtype[np.bool_]]]:
    """[N], [N]: the index of the holder that sends to each needing rank, and whether it is on the rank's node.

    `expert`, `rank` [N]: the needing ranks of each expert, in order of both.
    """
    nodes = -(-ranks // gpus_per_node)
    holder_node, node = (e * nodes + r // gpus_per_node for e, r in ((holders.expert, holders.rank), (expert, rank)))
    begin, end = np.searchsorted(holder_node, node, "left"), np.searchsorted(holder_node, node, "right")
    near = begin < end
    begin[~near] = np.searchsorted(holders.expert, expert[~near], "left")
    end[~near] = np.searchsorted(holders.expert, expert[~near], "right")
    chosen = begin.copy()
    chosen[near] += _split(node[near], (end - begin)[near])
    chosen[~near] += _split(expert[~near], (end - begin)[~near])
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
