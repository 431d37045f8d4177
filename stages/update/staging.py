"""The staging memory of one rank, laid out as `stages.staging` says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from stages.staging import Layout

if TYPE_CHECKING:
    import torch


class Staging:
    """`rows` rows in `data`, bytes `[n]` on one device."""

    def __init__(self, layout: Layout, rows: int, data: torch.Tensor) -> None:
        self.layout, self.rows, self.data = layout, rows, data
        edge = rows * layout.large_row
        self._areas = (
            data[:edge].view(rows, layout.large_row),
            data[edge : edge + rows * layout.small_row].view(rows, layout.small_row),
        )

    def tensor(self, row: int, k: int) -> torch.Tensor:
        """The bytes of tensor `k` in `row`."""
        return self.tensors(row, row + 1, k)[0]

    def tensors(self, first: int, last: int, k: int) -> torch.Tensor:
        """`[last - first, nbytes]`: the bytes of tensor `k` in rows `first` to `last` - 1."""
        offset = self.layout.offsets[k]
        return self._areas[self.layout.small[k]][first:last, offset : offset + self.layout.nbytes[k]]

    def small_rows(self, first: int, last: int) -> torch.Tensor:
        """All small tensors of rows `first` to `last` - 1, as one flat tensor."""
        return self._areas[True][first:last].view(-1)


def as_bytes(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Each tensor `[slots, …]` as bytes `[slots, n]`, in place."""
    import torch

    return [tensor.view(tensor.shape[0], -1).view(torch.uint8) for tensor in tensors]
