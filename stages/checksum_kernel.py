"""The checksum of stages.checksum on a GPU, in Triton: many rows of any length in one launch.

`work` `[W, 2]` (int32) gives each program a row and a chunk of it.
"""

from __future__ import annotations

import triton
import triton.language as tl

HASH_WARPS = 8
"""Of one program."""


@triton.jit(do_not_specialize=["start"])
def hash_rows(work, start, source, nbytes, columns, factors, sums, ALIGNED: tl.constexpr, BLOCKS: tl.constexpr):
    """Add to `sums[task]` the multilinear sum (see stages.checksum) of chunk `chunk` of the row at `source[task]`."""
    program = start + tl.program_id(0)
    task = tl.load(work + 2 * program).to(tl.int64)
    chunk = tl.load(work + 2 * program + 1)
    size = tl.load(nbytes + task)
    words = size // 4
    c = tl.arange(0, 1024)
    first = chunk * BLOCKS
    acc = tl.zeros((1024,), tl.int64)
    address = tl.load(source + task)
    if ALIGNED:
        row = tl.multiple_of(address.to(tl.pointer_type(tl.int32)), 16)
        whole = tl.minimum(first + BLOCKS, (words // 1024).to(tl.int32))
        # Several blocks are on their way at once: under a busy network the wait for memory is long.
        for r in range(first, whole - 3, 4):
            a0 = tl.load(row + r * 1024 + c)
            a1 = tl.load(row + r * 1024 + 1024 + c)
            a2 = tl.load(row + r * 1024 + 2048 + c)
            a3 = tl.load(row + r * 1024 + 3072 + c)
            acc += a0.to(tl.int64) * tl.load(factors + r)
            acc += a1.to(tl.int64) * tl.load(factors + r + 1)
            acc += a2.to(tl.int64) * tl.load(factors + r + 2)
            acc += a3.to(tl.int64) * tl.load(factors + r + 3)
        for r in range(first + tl.maximum(whole - first, 0) // 4 * 4, whole):
            acc += tl.load(row + r * 1024 + c).to(tl.int64) * tl.load(factors + r)
        if whole < first + BLOCKS:
            at = whole * 1024 + c
            word = tl.load(row + at, mask=at < words, other=0).to(tl.int64)
            acc += word * tl.load(factors + whole, mask=whole * 1024 < words, other=0)
    else:
        data = address.to(tl.pointer_type(tl.uint8))
        for r in range(first, first + BLOCKS):
            at = r * 1024 + c
            inside = at < words
            word = tl.load(data + 4 * at, mask=inside, other=0).to(tl.int32)
            word |= tl.load(data + 4 * at + 1, mask=inside, other=0).to(tl.int32) << 8
            word |= tl.load(data + 4 * at + 2, mask=inside, other=0).to(tl.int32) << 16
            word |= tl.load(data + 4 * at + 3, mask=inside, other=0).to(tl.int32) << 24
            acc += word.to(tl.int64) * tl.load(factors + r, mask=r * 1024 < words, other=0)
    total = tl.sum(acc * tl.load(columns + c), axis=0)
    last = words // 1024
    if (size % 4 != 0) & (last >= first) & (last < first + BLOCKS):
        tail = address.to(tl.pointer_type(tl.uint8)) + 4 * words
        b = tl.arange(0, 4)
        part = tl.load(tail + b, mask=b < size % 4, other=0).to(tl.int64) << (8 * b)
        total += tl.sum(part, axis=0) * tl.load(columns + words % 1024) * tl.load(factors + last)
    tl.atomic_add(sums + task, total, sem="relaxed")


@triton.jit
def mixed(x):
    """SplitMix64's finaliser, as in stages.checksum. x: uint64."""
    x = (x + 1) * 0x9E3779B97F4A7C15
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)
