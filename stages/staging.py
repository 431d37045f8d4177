"""How the staging memory of a rank is spent: places for experts, where what arrives waits until it has been checked.

The large tensors of an expert lie together in a row, its small ones (scales, biases) in a row of a second area: so the
small ones of neighbouring rows are one message, while each large one travels out of its slot without a copy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from stages.errors import BadInput

ALIGNMENT = 16
MIB = 1 << 20
SMALL_BYTES = MIB
"""Tensors below this are packed: to send one takes about as long as to send so many bytes."""
PACK_ROWS = 8
"""Where staging holds fewer experts nothing is packed for sending: every tensor travels on its own."""
BATCH_BYTES = 256 * MIB
LAST_BYTES = 32 * MIB
"""Larger batches make links no faster, smaller ones do not fill them."""
SENDS = 2
AREAS = 4
"""How many batches are in staging at once: one is committed, one is checked, two are on their way."""


@dataclass(frozen=True)
class Layout:
    """Where the tensors of an expert lie: tensor k of row r has `nbytes[k]` bytes at `offsets[k]` of row r of its area,
    the small one if `small[k]`. Rows of the areas have `large_row` and `small_row` bytes."""

    nbytes: tuple[int, ...]
    small: tuple[bool, ...]
    offsets: tuple[int, ...]
    large_row: int
    small_row: int

    @classmethod
    def of(cls, nbytes: Sequence[int]) -> Layout:
        offsets, ends = [], [0, 0]
        small = tuple(size < SMALL_BYTES for size in nbytes)
        for size, area in zip(nbytes, small, strict=True):
            offsets.append(ends[area])
            ends[area] += math.ceil(size / ALIGNMENT) * ALIGNMENT
        return cls(tuple(nbytes), small, tuple(offsets), ends[False], ends[True])

    @property
    def row_bytes(self) -> int:
        return self.large_row + self.small_row

    @property
    def small_padding(self) -> int:
        """Bytes of a row of the small area that belong to no tensor."""
        return self.small_row - sum(size for size, small in zip(self.nbytes, self.small, strict=True) if small)

    def total(self, rows: int) -> int:
        return rows * self.row_bytes

    def starts(self, rows: int) -> list[int]:
        """[K]: where tensor k of row 0 begins in staging of `rows` rows."""
        return [offset + rows * self.large_row * small for offset, small in zip(self.offsets, self.small, strict=True)]

    def strides(self) -> list[int]:
        """[K]: from tensor k of a row to that of the next."""
        return [self.small_row if small else self.large_row for small in self.small]


@dataclass(frozen=True)
class Budget:
    """How `staging_mib` is spent: `rows` for arrivals, `at_once` of them in one batch (`at_least` in the last ones), and
    `packed` small rows for copies of what is sent in one batch, twice (one batch is packed while the one before is on
    its way)."""

    rows: int
    at_once: int
    at_least: int
    packed: int

    @property
    def sends_at_once(self) -> int:
        """Experts that a rank sends out of its slots in one batch: where nothing is packed, so that groups of operations
        stay small."""
        return self.packed or SENDS * self.at_once

    def nbytes(self, layout: Layout) -> int:
        return layout.total(self.rows) + 2 * self.packed * layout.small_row


def budget(layout: Layout, staging_mib: float, *, packs: bool, most: int) -> Budget:
    """`most`: what a rank can receive in the whole update, in experts: more staging than that is not taken.

    Raises `BadInput` with the least value that works where two experts do not fit.
    """
    limit = staging_mib * MIB
    fits = int(limit / layout.row_bytes)
    if fits < 2:
        least = 2 * layout.row_bytes / MIB
        least = math.ceil(least) if least > 1 else math.ceil(least * 1000) / 1000
        raise BadInput(
            f"update.staging_mib={staging_mib:g} is too small: two experts of {layout.row_bytes:,} bytes are the least, "
            f"which update.staging_mib={least} holds."
        )
    wanted = max(1, min(most, BATCH_BYTES // layout.row_bytes))
    at_least = max(1, LAST_BYTES // layout.row_bytes)
    if fits < PACK_ROWS:
        rows = min(fits, max(2, AREAS * wanted))
        at_once = max(1, min(wanted, rows // 2))
        return Budget(rows, at_once, min(at_least, at_once), packed=0)
    copies = 2 * layout.small_row if packs else 0
    at_once = max(1, min(wanted, int(limit / (AREAS * layout.row_bytes + copies))))
    return Budget(AREAS * at_once, at_once, min(at_least, at_once), packed=at_once if copies else 0)
