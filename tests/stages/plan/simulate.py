"""Plans carried out on paper, hop by hop: what every rank has after each round, and whether rounds can end at all."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from stages.expert_map import EMPTY, ExpertMap
from stages.transfers import Kind, TransferPlan

Row = dict[str, int]


def rows_of(plan: TransferPlan) -> list[Row]:
    names = list(plan.__dataclass_fields__)
    return [
        dict(zip(names, values, strict=True))
        for values in zip(*(getattr(plan, name).tolist() for name in names), strict=True)
    ]


def carry_out(plan: TransferPlan, old: ExpertMap, new: ExpertMap, ranks: int, gpus_per_node: int) -> None:
    """Assert that the rows turn `old` into `new` (`[L, P]`), each possible when its round comes."""
    layers, slots = old.shape
    by_layer: dict[int, list[Row]] = defaultdict(list)
    for row in rows_of(plan):
        by_layer[row["layer"]].append(row)
    for layer in range(layers):
        _Layer(old[layer], slots // ranks, gpus_per_node).run(by_layer[layer], new[layer])
    assert set(by_layer) <= set(range(layers))


class _Layer:
    def __init__(self, old: np.ndarray, per_rank: int, gpus_per_node: int) -> None:
        self.old, self.per_rank, self.gpus = old, per_rank, gpus_per_node
        held = old.reshape(-1, per_rank).tolist()
        self.first = [{e: r * per_rank + own.index(e) for e in own if e != EMPTY} for r, own in enumerate(held)]
        self.landed: dict[tuple[int, int], int] = {}  # (rank, expert) -> slot, or -1: in staging alone

    def run(self, rows: list[Row], new: np.ndarray) -> None:
        rounds = [row["round"] for row in rows]
        assert rounds == sorted(rounds)
        assert all(number >= 0 for number in rounds)
        reached = self.old.copy()
        filled: set[int] = set()
        riders = []
        for number in sorted(set(rounds)):
            arriving = {}
            for row in (row for row in rows if row["round"] == number):
                if row["dst_slot"] >= 0:
                    assert row["dst_slot"] not in filled
                    assert row["dst_slot"] // self.per_rank == row["dst_rank"]
                    filled.add(row["dst_slot"])
                    reached[row["dst_slot"]] = row["logical_expert"]
                if row["kind"] == Kind.same_gpu:
                    assert row["src_rank"] == row["dst_rank"]
                    assert row["src_slot"] == self.first[row["src_rank"]][row["logical_expert"]]
                elif row["kind"] == Kind.free_rider:
                    riders.append(row)
                else:
                    arriving |= self.hop(row)
            assert not set(arriving) & set(self.landed)
            self.landed |= arriving  # only now: what a round brings can be forwarded by later ones alone
        for row in riders:
            assert row["src_rank"] == row["dst_rank"]
            assert self.landed[row["src_rank"], row["logical_expert"]] == row["src_slot"] < row["dst_slot"]
        assert ((reached == new) | (new == EMPTY)).all()
        assert (new[sorted(filled)] != EMPTY).all()

    def hop(self, row: Row) -> dict[tuple[int, int], int]:
        expert, src, dst = row["logical_expert"], row["src_rank"], row["dst_rank"]
        assert src != dst
        assert expert not in self.first[dst]
        if row["kind"] == Kind.relay:
            assert expert not in self.first[src]
            assert row["src_slot"] == self.landed[src, expert]
        else:
            assert row["src_slot"] == self.first[src][expert]
            assert (row["kind"] == Kind.same_node) == (src // self.gpus == dst // self.gpus)
        return {(dst, expert): row["dst_slot"]}


def finishes(plan: TransferPlan, ranks: int) -> bool:
    """Whether ranks that go through their own rows round by round, and in each round wait for all their peers to have
    come to it, all come to the end."""
    todo: list[list[tuple[int, int]]] = [[] for _ in range(ranks)]
    peers: dict[tuple[int, int, int], set[int]] = defaultdict(set)
    for row in rows_of(plan):
        if row["kind"] < Kind.same_node:
            continue
        group = row["layer"], row["round"]
        for rank, peer in ((row["src_rank"], row["dst_rank"]), (row["dst_rank"], row["src_rank"])):
            peers[rank, *group].add(peer)
            if not todo[rank] or todo[rank][-1] != group:
                todo[rank].append(group)
    at = [0] * ranks
    moved = True
    while moved:
        moved = False
        for rank in range(ranks):
            while at[rank] < len(todo[rank]):
                group = todo[rank][at[rank]]
                there = all(at[p] < len(todo[p]) and todo[p][at[p]] >= group for p in peers[rank, *group])
                behind = all(at[p] >= len(todo[p]) or todo[p][at[p]] >= group for p in peers[rank, *group])
                if not (there or behind):
                    break
                at[rank] += 1
                moved = True
    return all(index == len(groups) for index, groups in zip(at, todo, strict=True))
