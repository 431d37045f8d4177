"""Judging a source block by block: its shape, its values, its routers, its sums and its repeats."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from stages.collect.defects import (
    CERTAIN,
    CERTAIN_OF_A_LAYER,
    Fingerprints,
    broken_router,
    expected_sums,
    wrong_sums,
)
from stages.collect.dump import Block, Dump
from stages.collect.faults import MOST, all_faults, as_integers, first_fault
from stages.collect.findings import REPEATS, ROUTER, SUM, Findings
from stages.collect.layers import Layout, layout_of
from stages.collect.repair import apportion
from stages.collect.selection import Cells, Counts, Selection, as_counts, example, middle, within
from stages.collect.windows import SHOWN, kinds, matcher
from stages.collect.words import listed, numbered
from stages.errors import BadInput
from stages.model import ModelSpec


class Intake:
    """One source on its way in. `judge` each block, then `conclude`; then `restart` and `select` to read it again."""

    def __init__(self, dump: Dump, model: ModelSpec, label: str | None) -> None:
        self.dump, self.model, self.label = dump, model, label
        self.top_k = model.top_k or dump.top_k
        self.layout: Layout | None = None
        self.findings = Findings(dump.origin, [])
        self.empty_rows: list[int] = []
        self._kept: list[Counts] = []
        self._labels: Counter[str] = Counter()
        self._row = 0
        self._chosen = 0
        self.odd_sums = 0

    @property
    def kept_rows(self) -> list[int]:
        return np.concatenate(self._kept).tolist() if self._kept else []

    def restart(self) -> None:
        """From the first row again, with all that is wrong known."""
        self._row = 0
        self._bad, self._uneven = self.findings.cells(), self.findings.cells(SUM)
        self._gone = self.findings.repeated_rows()

    def judge(self, block: Block) -> Iterator[Selection]:
        """Note what is wrong with the chosen rows, and yield those that were filled."""
        for chosen in self.select(block):
            filled = np.asarray(chosen.count.any(axis=(1, 2)) | chosen.bad.any(axis=1))
            self.empty_rows += chosen.rows[~filled].tolist()
            part = chosen.only(filled)
            if len(part.rows):
                self._kept.append(part.rows)
                self._totals += part.count.sum(axis=(0, 2), dtype=np.float64)
                self._note_defects(part)
                yield part

    def select(self, block: Block) -> Iterator[Selection]:
        """The rows of `block` that have the label, none if there are none."""
        if self.layout is None:
            self._begin(block)
        layout = self.layout
        assert layout is not None
        first, self._row = self._row, self._row + len(block.count)
        if block.count.shape[1:] != (layout.found, layout.experts):
            raise BadInput(
                f"{self.dump.origin}: row {first} has {list(block.count.shape[1:])} layers and experts, but the rows "
                f"before have {[layout.found, layout.experts]}."
            )
        keep = self._chosen_rows(block)
        self._chosen += len(keep)
        if not len(keep):
            return
        every = len(keep) == len(block.count)
        raw = block.count if every else block.count[keep]
        raw = raw if layout.all_moe else raw[:, layout.moe]
        bad, count = as_counts(raw)
        tokens = self._tokens(block, keep, first)
        sums = count.sum(axis=2)
        expected = expected_sums(sums, ~bad, tokens, self.top_k)
        known = tokens is not None
        about = tokens if tokens is not None else sums.mean(axis=1) / (self.top_k or 1)
        labels = tuple(block.labels[row] for row in keep) if block.labels else ()
        yield Selection(count, bad, raw, first + keep, labels, about.astype(np.float64), expected, known)

    def _begin(self, block: Block) -> None:
        self.layout = layout_of(self.dump, block.count.shape, self.model)
        self.findings.names = self.layout.names
        layers = len(self.layout.moe)
        self._totals = np.zeros(layers)
        self._prints = Fingerprints(layers * self.layout.experts)
        self._router_rows = np.zeros(layers, dtype=np.int64)
        self._filled_rows = np.zeros(layers, dtype=np.int64)
        self._evidence = np.zeros(layers)
        self._suspects: list[tuple[Counts, Cells]] = []
        if self.label is not None and not block.labels:
            raise BadInput(f"collect.label={self.label} chooses nothing: {self.dump.origin} does not name its windows.")

    def _chosen_rows(self, block: Block) -> Counts:
        if self.label is None:
            return np.arange(len(block.count))
        self._labels.update(kinds(block.labels))
        chosen = matcher(self.label)
        return np.array([n for n, name in enumerate(block.labels) if chosen(name)], dtype=np.int64)

    def _tokens(self, block: Block, keep: Counts, first: int) -> Counts | None:
        if block.tokens is None:
            return None
        tokens = np.asarray(block.tokens).ravel()
        fault = first_fault(tokens)
        if fault is not None:
            rows = first + np.flatnonzero(fault.where)
            raise BadInput(f"{self.dump.origin}: tokens are {fault.what} in {numbered('row', rows.tolist())}.")
        return as_integers(tokens)[keep]

    def _note_defects(self, part: Selection) -> None:
        if part.bad.any():
            for fault in all_faults(part.raw):
                self.findings.of(fault.what).add(
                    part.rows, np.asarray(fault.where.any(axis=2)), example(part.raw, fault.where)
                )
        sums = part.count.sum(axis=2)
        router, evidence = broken_router(part.count, self.top_k)
        router &= ~part.bad
        certain = router & (evidence >= CERTAIN)
        self._filled_rows += (sums > 0).sum(axis=0)
        if router.any():
            self.findings_of_router(part.rows, certain)
            self._router_rows += router.sum(axis=0)
            self._evidence += np.where(router, evidence, 0).sum(axis=0)
            if (router & ~certain).any():
                self._suspects.append((part.rows, router & ~certain))
        if self.top_k is not None:
            self.odd_sums += int(((sums % self.top_k != 0) & ~part.bad).sum())
        wrong = wrong_sums(sums, part.expected, tokens_known=part.known) & ~part.bad & ~certain
        if wrong.any():
            expected = part.expected
            self.findings.of(SUM).add(
                part.rows, wrong, lambda t, l: f"{sums[t, l]:,} where {expected[t]:,} are expected"
            )
        self._prints.add(part.count, part.rows)

    def findings_of_router(self, rows: Counts, cells: Cells) -> None:
        if cells.any():
            self.findings.of(ROUTER).add(rows, cells, lambda t, l: f"row {rows[t]}")

    def conclude(self) -> None:
        """What only shows when all rows are known."""
        origin = self.dump.origin
        if self.label is not None and not self._chosen:
            available = listed([f"{name} ({number})" for name, number in self._labels.items()], SHOWN)
            raise BadInput(f"collect.label={self.label} matches no window of {origin}; available are {available}.")
        layout = self.layout
        if layout is None:
            raise BadInput(f"{origin} is empty: it has no rows.")
        if not self._kept:
            raise BadInput(f"{origin} has no tokens: {numbered('layer', layout.names)} are zero in all its rows.")
        if self._totals.max() > MOST:
            layer = int(self._totals.argmax())
            raise BadInput(
                f"{origin}: layer {layout.names[layer]} has {self._totals[layer]:.3g} tokens in all its rows; "
                f"at most 2^53 can be counted exactly."
            )
        always = (self._router_rows == self._filled_rows) & (self._evidence >= CERTAIN_OF_A_LAYER)
        for rows, cells in self._suspects:
            self.findings_of_router(rows, cells & always)
        again, earlier = self._prints.repeats()
        if len(again):
            cells = np.ones((len(again), len(layout.moe)), dtype=bool)
            self.findings.of(REPEATS).add(again, cells, lambda t, l: f"row {again[t]} is row {earlier[t]} again")

    def without_bad(self, chosen: Selection, *, repair: bool) -> Selection:
        """The rows that are left, with the bad counts of a layer at 0 or, to `repair` them, put right or owed."""
        layers = len(self.findings.names)
        keys = chosen.rows[:, None] * layers + np.arange(layers)
        bad = within(keys, self._bad)
        gone = within(chosen.rows, self._gone)
        sums = chosen.count.sum(axis=2)
        good = ~bad & (sums > 0)
        count = np.where(bad[:, :, None], 0, chosen.count)
        owed = np.zeros(bad.shape, dtype=np.int64)
        if repair:
            target = np.where(chosen.expected >= 0, chosen.expected, middle(sums, good))
            uneven = within(keys, self._uneven) & (sums > 0) & (target > 0)[:, None]
            row, layer = np.nonzero(uneven)
            count[row, layer] = apportion(target[row], chosen.count[row, layer])
            owed = np.where(bad & ~uneven, target[:, None], 0)
        left = (good.any(axis=1) | (owed > 0).any(axis=1) | count.any(axis=(1, 2))) & ~gone
        return replace(chosen, count=count, bad=bad, owed=owed).only(left)
