"""Memory of files that torch maps: what was read stays resident until it is given back."""

from __future__ import annotations

import ctypes
import mmap
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

MAPS = Path("/proc/self/maps")


@dataclass(frozen=True)
class MappedPages:
    """The addresses at which a file is mapped, [start, end) each; none where that cannot be known."""

    ranges: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, path: Path) -> MappedPages:
        """Of the mappings that there are now."""
        if not MAPS.exists():
            return cls()
        inode, name = str(path.stat().st_ino), path.name.encode("utf-8").decode("utf-8", "replace")
        ranges = []
        for line in MAPS.read_text(encoding="utf-8", errors="replace").splitlines():
            address, *_, found, where = [*line.split(maxsplit=5), ""][:6]
            if found == inode and where.endswith(name):
                start, _, end = address.partition("-")
                ranges.append((int(start, 16), int(end, 16)))
        return cls(tuple(ranges))

    def forget(self, *tensors: torch.Tensor) -> None:
        """Give back the whole pages of tensors that lie in the file and were only read; they are read again when
        needed. Tensors that lie elsewhere are left alone: their pages would come back empty."""
        advise = _madvise()
        for tensor in tensors:
            first, last = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
            start, end = -(-first // mmap.PAGESIZE) * mmap.PAGESIZE, last // mmap.PAGESIZE * mmap.PAGESIZE
            inside = any(a <= first and last <= b for a, b in self.ranges)
            if advise and inside and end > start and tensor.is_contiguous():
                advise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)


@cache
def _madvise() -> Any:
    """The C library's function, where there is one."""
    if not hasattr(mmap, "MADV_DONTNEED"):
        return None
    return getattr(ctypes.CDLL(None), "madvise", None)
