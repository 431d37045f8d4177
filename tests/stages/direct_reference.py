"""The golden answers, and the semantics of a direct transfer written out slot by slot, to compare with."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from stages.expert_map import ExpertMap
from stages.transfers import Kind, TransferPlan

GOLDEN = Path(__file__).parents[1] / "golden" / "transfers.json"


@dataclass(frozen=True)
class GoldenCase:
    """One layer: maps `[P]`, and for each rank what each of its slots gets and its ops in order."""

    world_size: int
    nodes: int
    slots_per_rank: int
    old: list[int]
    new: list[int]
    ranks: list[dict[str, list]]

    @property
    def gpus_per_node(self) -> int:
        return self.world_size // self.nodes


@cache
def golden_cases() -> list[GoldenCase]:
    cases = json.loads(GOLDEN.read_text(encoding="utf-8"))
    return [GoldenCase(**{name: c[name] for name in GoldenCase.__dataclass_fields__}) for c in cases]


def received(plan: TransferPlan, rank: int, slots_per_rank: int) -> list[dict[str, object]]:
    """What each slot of `rank` gets, in the words of the golden file."""
    slots = {}
    for i in np.flatnonzero(plan.dst_rank == rank):
        kind, slot = Kind(int(plan.kind[i])), int(plan.dst_slot[i])
        if kind in (Kind.same_gpu, Kind.free_rider):
            assert plan.src_rank[i] == rank
            source = {"src_slot": int(plan.src_slot[i])}
        else:
            source = {"src_rank": int(plan.src_rank[i])}
        slots[slot] = {"slot": slot, "case": kind.name.replace("_", "-"), **source}
    here = range(rank * slots_per_rank, (rank + 1) * slots_per_rank)
    return [slots.get(slot, {"slot": slot, "case": "unchanged"}) for slot in here]


def ops(plan: TransferPlan, rank: int) -> list[list]:
    """[direction, peer, slot] of each op of `rank`, in order."""
    out = []
    for i in np.flatnonzero(plan.network & ((plan.src_rank == rank) | (plan.dst_rank == rank))):
        if plan.src_rank[i] == rank:
            out.append(["isend", int(plan.dst_rank[i]), int(plan.src_slot[i])])
        else:
            out.append(["irecv", int(plan.src_rank[i]), int(plan.dst_slot[i])])
    return out


def split(items: list[int], k: int) -> list[list[int]]:
    """`items` in k consecutive chunks, the first len(items) mod k one longer."""
    size, longer = divmod(len(items), k)
    sizes = [size + 1] * longer + [size] * (k - longer)
    return [items[sum(sizes[:i]) : sum(sizes[: i + 1])] for i in range(k)]


def sender_of(expert: int, old: list[int], new: list[int], slots_per_rank: int, gpus_per_node: int) -> dict[int, int]:
    """Needing rank -> the rank that sends it `expert`."""
    ranks = range(len(old) // slots_per_rank)

    def holds(expert_map: list[int], rank: int) -> bool:
        return expert in expert_map[rank * slots_per_rank : (rank + 1) * slots_per_rank]

    sources = [rank for rank in ranks if holds(old, rank)]
    needing = [rank for rank in ranks if holds(new, rank) and rank not in sources]
    senders: dict[int, int] = {}
    for node in {rank // gpus_per_node for rank in sources}:
        on_node = [rank for rank in sources if rank // gpus_per_node == node]
        near = [rank for rank in needing if rank // gpus_per_node == node]
        for source, chunk in zip(on_node, split(near, len(on_node)), strict=True):
            senders |= dict.fromkeys(chunk, source)
    far = [rank for rank in needing if rank not in senders]
    for source, chunk in zip(sources, split(far, len(sources)), strict=True):
        senders |= dict.fromkeys(chunk, source)
    return senders


def reference_rows(old: ExpertMap, new: ExpertMap, ranks: int, gpus_per_node: int) -> list[tuple[int, ...]]:
    """(layer, expert, kind, src_rank, src_slot, dst_rank, dst_slot) of every row, in order."""
    slots_per_rank = old.shape[1] // ranks
    rows = []
    for layer, (before, after) in enumerate(zip(old.tolist(), new.tolist(), strict=True)):
        for slot, expert in enumerate(after):
            if expert in (-1, before[slot]):
                continue
            rank = slot // slots_per_rank
            start = rank * slots_per_rank
            if expert in before[start : start + slots_per_rank]:
                kind, source = Kind.same_gpu, before.index(expert, start)
            elif expert in after[start:slot]:
                kind, source = Kind.free_rider, after.index(expert, start)
            else:
                sender = sender_of(expert, before, after, slots_per_rank, gpus_per_node)[rank]
                near = sender // gpus_per_node == rank // gpus_per_node
                kind = Kind.same_node if near else Kind.cross_node
                source = before.index(expert, sender * slots_per_rank)
            rows.append((layer, expert, int(kind), source // slots_per_rank, source, rank, slot))
    return sorted(rows, key=lambda row: (*row[:3], *row[5:]))
