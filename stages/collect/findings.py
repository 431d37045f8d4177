"""What was found wrong with a source, kept as rows and layers, and told in words."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from stages.collect.words import numbered
from stages.errors import BadInput

HOW_COUNTED = "windows, counted from 0"
ROUTER, SUM, REPEATS = "router", "sum", "repeats"
ORDER = ("not numbers", "not finite", "not whole numbers", "negative", "too large (above 2^53)", ROUTER, SUM, REPEATS)

Rows = npt.NDArray[np.int64]


@dataclass
class Finding:
    """One kind of defect: the cells (row, layer) that have it, and an example of each layer, in words."""

    kind: str
    rows: list[Rows] = field(default_factory=list)
    layers: list[Rows] = field(default_factory=list)
    examples: dict[int, str] = field(default_factory=dict)

    def add(self, rows: Rows, cells: npt.NDArray[np.bool_], example: Callable[[int, int], str]) -> None:
        """`rows`: [T] numbers, `cells`: [T, L]. `example` says what is wrong with a cell, given its indices."""
        at, layer = np.nonzero(cells)
        if not len(at):
            return
        self.rows.append(rows[at])
        self.layers.append(layer)
        for found, first in zip(*np.unique(layer, return_index=True), strict=True):
            if int(found) not in self.examples:
                self.examples[int(found)] = example(int(at[first]), int(found))

    @property
    def cells(self) -> tuple[Rows, Rows]:
        """[N] rows and [N] layers."""
        return np.concatenate(self.rows), np.concatenate(self.layers)

    def sentence(self, names: list[int]) -> str:
        """The first layer with it, its rows, an example, and the other layers; `names`: what layers are called."""
        rows, layers = self.cells
        present = np.unique(layers)
        where = numbered("row", np.unique(rows[layers == present[0]]).tolist())
        if self.kind == REPEATS:
            return f"{where} ({HOW_COUNTED}) repeat earlier rows in every layer, as padding does: {self.examples[0]}"
        layer = f"layer {names[present[0]]}"
        example = self.examples[int(present[0])]
        what = {
            ROUTER: "sends every token to its first experts, as a router that computes NaN does,",
            SUM: "has counts that do not add up to tokens × top_k",
        }.get(self.kind, f"has counts that are {self.kind}")
        others = [names[other] for other in present[1:]]
        more = f". There are such counts in {numbered('layer', others)} too" if others else ""
        return f"{layer} {what} in {where} ({HOW_COUNTED}); the first is {example}{more}"


@dataclass
class Findings:
    """All that was found in a source."""

    origin: str
    names: list[int]
    found: dict[str, Finding] = field(default_factory=dict)

    def of(self, kind: str) -> Finding:
        return self.found.setdefault(kind, Finding(kind))

    def listed(self) -> list[Finding]:
        """The gravest first."""
        return sorted((f for f in self.found.values() if f.rows), key=lambda finding: ORDER.index(finding.kind))

    def raise_first(self) -> None:
        """Raise `BadInput` where anything was found."""
        listed = self.listed()
        if not listed:
            return
        more = f" {len(listed) - 1} other kinds of defects were found too." if len(listed) > 2 else ""
        more = " Another kind of defect was found too." if len(listed) == 2 else more
        remedy = "collect.on_bad=drop leaves out what is bad, collect.on_bad=repair replaces it."
        raise BadInput(f"{self.origin}: {listed[0].sentence(self.names)}.{more} {remedy}")

    def sentences(self) -> list[str]:
        return [finding.sentence(self.names) for finding in self.listed()]

    def cells(self, *kinds: str) -> Rows:
        """Sorted keys (row × layers + layer) of the cells with these kinds of defects, or with any but repeats."""
        wanted = [f for f in self.listed() if (f.kind in kinds if kinds else f.kind != REPEATS)]
        keys = [rows * len(self.names) + layers for rows, layers in (finding.cells for finding in wanted)]
        return np.unique(np.concatenate(keys)) if keys else np.zeros(0, dtype=np.int64)

    def repeated_rows(self) -> Rows:
        finding = self.found.get(REPEATS)
        return np.unique(finding.cells[0]) if finding and finding.rows else np.zeros(0, dtype=np.int64)
