"""make bench-checksum: how fast checksums are read, against torch.sum of the same bytes in the same run.

PYTHONPATH=. python -m tests.bench.bench_checksum
"""

from __future__ import annotations

import statistics
import time

import torch

from stages.checksum import checksum_rows

ROWS = ((16, 64 << 20), (128, 6 << 20), (1024, 1 << 20), (16384, 65536), (65536, 4096), (4096, 65537))
REPEATS = 9


def seconds(work: object, device: str) -> float:
    """Median of a few calls; on a GPU by its own clock, the host's share of a call included."""
    assert callable(work)
    found = []
    for _ in range(REPEATS + 2):
        if device == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - began)
    return statistics.median(found[2:])


def kernel_seconds(rows: torch.Tensor) -> float:
    """Of the hashing kernel alone."""
    from stages import checksum_kernel
    from stages.checksum import BLOCK, block_keys, column_keys

    count, nbytes = rows.shape
    chunks = -(-nbytes // checksum_chunk())
    index = torch.arange(count * chunks, device="cuda", dtype=torch.int32)
    work = torch.stack([index // chunks, index % chunks], dim=1).contiguous()
    source = rows.data_ptr() + torch.arange(count, device="cuda") * nbytes
    sizes = torch.full((count,), nbytes, device="cuda")
    sums = torch.zeros(count, dtype=torch.int64, device="cuda")
    columns, factors = (
        torch.from_numpy(k.view("int64")).cuda() for k in (column_keys(), block_keys(-(-nbytes // BLOCK)))
    )
    aligned = nbytes % 16 == 0

    def hash_all() -> None:
        checksum_kernel.hash_rows[(len(work),)](
            work, 0, source, sizes, columns, factors, sums,
            ALIGNED=aligned, BLOCKS=checksum_chunk() // BLOCK, num_warps=checksum_kernel.HASH_WARPS,
        )  # fmt: skip

    return event_seconds(hash_all)


def checksum_chunk() -> int:
    from stages import checksum_gpu

    return checksum_gpu.CHUNK


def event_seconds(work: object) -> float:
    assert callable(work)
    found = []
    for _ in range(REPEATS + 2):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        torch.cuda.synchronize()
        found.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(found[2:])


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(1)
    print(
        "| rows | bytes a row | torch.sum GB/s | checksum GB/s | of torch.sum | with tables and the way to the host GB/s |"
    )
    print("|---|---|---|---|---|---|")
    for count, nbytes in ROWS:
        if device == "cpu":
            count = max(1, count // 8)
        rows = torch.randint(0, 256, (count, nbytes), dtype=torch.uint8, device=device)
        numbers = rows.view(torch.float32) if nbytes % 4 == 0 else rows
        whole = seconds(lambda rows=rows: checksum_rows(rows), device)
        if device == "cuda":
            alone, total = kernel_seconds(rows), event_seconds(lambda numbers=numbers: numbers.sum())
        else:
            alone, total = whole, seconds(lambda numbers=numbers: numbers.sum(), device)
        rate = [rows.nbytes / t / 1e9 for t in (total, alone, whole)]
        print(
            f"| {count} | {nbytes:,} | {rate[0]:.0f} | {rate[1]:.1f} | {rate[1] / rate[0]:.0%} | {rate[2]:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
