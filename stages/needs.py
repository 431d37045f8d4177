"""What stands between two maps: which rank lacks which expert, who holds it, and what needs no network.

An expert of a layer is one number here, its *item*: layer * experts + logical expert, so that sorting groups by both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from stages.errors import BadInput
from stages.expert_map import EMPTY, ExpertMap, slots_per_rank
from stages.transfers import Ints

MOST_NAMED = 8
"""The most experts that one error names."""


class Holders(NamedTuple):
    """The ranks that hold each item in the old map, in order of (item, rank), with their first slot of it."""

    item: Ints
    rank: Ints
    slot: Ints


class Copies(NamedTuple):
    """Copies within a rank: the item, the slot it goes to and the slot it comes from."""

    item: Ints
    slot: Ints
    source: Ints


@dataclass(frozen=True)
class Needs:
    """`item`, `rank`, `slot` [N]: what each rank lacks, once, in order of (item, rank), and the first slot it goes to.

    same_gpu:   slots whose expert their rank holds elsewhere in the old map
    free_rider: slots whose expert an earlier slot of the rank receives
    """

    experts: int
    ranks: int
    slots_per_rank: int
    holders: Holders
    same_gpu: Copies
    free_rider: Copies
    item: Ints
    rank: Ints
    slot: Ints

    @property
    def held(self) -> npt.NDArray[np.bool_]:
        """[N]: whether any rank holds what is lacking."""
        return np.isin(self.item, self.holders.item)

    def check_held(self, layer_ids: Sequence[int] | None = None) -> None:
        """Raise `BadInput` if an expert has no holder. `layer_ids` `[L]` names the layers."""
        unheld = np.flatnonzero(~self.held)
        if not len(unheld):
            return
        items = np.unique(self.item[unheld])
        names = [
            f"layer {index if layer_ids is None else layer_ids[index]}: logical expert {expert}"
            for index, expert in (divmod(int(item), self.experts) for item in items[:MOST_NAMED])
        ]
        more = f", and {len(items) - MOST_NAMED} more" if len(items) > MOST_NAMED else ""
        others = f"; nor does one hold {', '.join(names[1:])}{more}" if len(names) > 1 else ""
        raise BadInput(
            f"{names[0]} is needed in slot {self.slot[unheld[0]]} (rank {self.rank[unheld[0]]}), and no slot of the old "
            f"map holds it{others}."
        )

    def only_held(self) -> Needs:
        """Without the experts that no rank holds, nor the free riders on them."""
        held = self.held
        rides = np.isin(self.free_rider.item, self.holders.item)
        return replace(
            self,
            item=self.item[held],
            rank=self.rank[held],
            slot=self.slot[held],
            free_rider=Copies(*(column[rides] for column in self.free_rider)),
        )


def needs_between(old: ExpertMap, new: ExpertMap, ranks: int) -> Needs:
    """Of two maps `[L, P]` over the same slots. Raises `BadInput` where they cannot be compared."""
    if old.shape != new.shape:
        raise BadInput(f"The old map has shape {list(old.shape)}, the new one {list(new.shape)}; they must agree.")
    per_rank = slots_per_rank(new, ranks)
    if min(old.min(initial=EMPTY), new.min(initial=EMPTY)) < EMPTY:
        raise BadInput("A map holds an expert below 0; allowed are logical experts, and -1 for an empty slot.")
    experts = max(1, int(max(old.max(initial=EMPTY), new.max(initial=EMPTY))) + 1)

    layer, slot = np.nonzero(old != EMPTY)
    key, first = np.unique((layer * experts + old[layer, slot]) * ranks + slot // per_rank, return_index=True)
    holders = Holders(key // ranks, key % ranks, slot[first])

    layer, slot = np.nonzero((new != old) & (new != EMPTY))
    item = layer * experts + new[layer, slot]
    wanted = item * ranks + slot // per_rank
    at = np.searchsorted(key, wanted)
    local = np.append(key, -1)[at] == wanted
    same_gpu = Copies(item[local], slot[local], holders.slot[at[local]])

    # Of the slots of a rank that want the same absent expert, the first receives and the others ride along.
    item, slot, wanted = item[~local], slot[~local], wanted[~local]
    _, first, of = np.unique(wanted, return_index=True, return_inverse=True)
    receiving = slot[first][of]
    rides = slot != receiving
    return Needs(
        experts,
        ranks,
        per_rank,
        holders,
        same_gpu,
        Copies(item[rides], slot[rides], receiving[rides]),
        item[first],
        slot[first] // per_rank,
        slot[first],
    )
