"""The work of a program as tables of addresses on a GPU, which kernels take: made once, before anything stops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from stages.checksum import block_keys, column_keys
from stages.transfers import Ints
from stages.update.program import NONE, Arrivals, Sends, Writes
from stages.update.staging import Staging
from stages.update.truth import Sums

WIDE, BYTE = 8, 1


@dataclass(frozen=True)
class Addresses:
    """Where the bytes are. `slots` `[L, K]`: the address of each tensor of a layer; `nbytes` `[K]`, of one slot of it;
    `starts`, `strides` `[K]`: of each tensor in staging."""

    slots: Ints
    nbytes: Ints
    starts: Ints
    strides: Ints

    @classmethod
    def of(cls, slots: Sequence[Sequence[torch.Tensor]], staging: Staging) -> Addresses:
        layout = staging.layout
        return cls(
            slots=np.array([[tensor.data_ptr() for tensor in tensors] for tensors in slots], dtype=np.int64),
            nbytes=np.array(layout.nbytes, dtype=np.int64),
            starts=np.array(layout.starts(staging.rows), dtype=np.int64),
            strides=np.array(layout.strides(), dtype=np.int64),
        )

    def of_slots(self, layer: Ints, slot: Ints) -> Ints:
        """[n, K]"""
        return self.slots[layer] + slot[:, None] * self.nbytes

    def of_rows(self, base: int | Ints, row: Ints) -> Ints:
        """[n, K]: in staging that begins at `base`."""
        return np.asarray(base).reshape(-1, 1) + self.starts + row[:, None] * self.strides


@dataclass(frozen=True)
class Work:
    """For each batch b the programs `begin[b]` to `begin[b + 1]` of one launch: `[W, 2]` task and chunk, on the GPU."""

    items: torch.Tensor
    begin: list[int]

    @classmethod
    def of(cls, batch: Ints, nbytes: Ints, batches: int, chunk_bytes: int, device: torch.device) -> Work:
        """`batch`, `nbytes` `[N]`: of each task, sorted by batch."""
        chunks = np.maximum(1, -(-nbytes // chunk_bytes))
        task = np.repeat(np.arange(len(batch)), chunks)
        chunk = np.arange(len(task)) - np.repeat(np.cumsum(chunks) - chunks, chunks)
        items = torch.from_numpy(np.stack([task, chunk], axis=1).astype(np.int32)).to(device)
        edges = np.searchsorted(batch[task], np.arange(batches + 1)) if len(task) else np.zeros(batches + 1, dtype=int)
        return cls(items, edges.tolist())

    def of_batch(self, batch: int) -> tuple[int, int]:
        """The first item of one batch, and the first of the next."""
        return self.begin[batch], self.begin[batch + 1]


@dataclass(frozen=True)
class HashTables:
    """What arrives, as tasks: `[n * K]` tensors of arrivals, in order. `edges` `[B + 1]` counts tasks."""

    work: Work
    source: torch.Tensor
    nbytes: torch.Tensor
    truth: torch.Tensor
    columns: torch.Tensor
    factors: torch.Tensor
    sums: torch.Tensor
    found: torch.Tensor
    edges: list[int]
    aligned: bool


def hash_tables(
    arrivals: Arrivals, at: Addresses, staging: Staging, truth: Sums, chunk_bytes: int, device: torch.device
) -> HashTables:
    count, batches = len(at.nbytes), len(arrivals.begin) - 1
    source = at.of_rows(staging.data.data_ptr(), arrivals.row).ravel()
    nbytes = np.tile(at.nbytes, len(arrivals))
    batch = np.repeat(np.repeat(np.arange(batches), np.diff(arrivals.begin)), count)
    expected = truth[arrivals.layer, arrivals.expert].reshape(-1).view(np.int64)
    blocks = int(-(-at.nbytes.max() // 4096))
    return HashTables(
        work=Work.of(batch, nbytes, batches, chunk_bytes, device),
        source=upload_numbers(source, device),
        nbytes=upload_numbers(nbytes, device),
        truth=upload_numbers(expected, device),
        columns=upload_numbers(column_keys().view(np.int64), device),
        factors=upload_numbers(block_keys(blocks).view(np.int64), device),
        sums=torch.zeros(len(source), dtype=torch.int64, device=device),
        found=torch.zeros(len(source), dtype=torch.int64, device=device),
        edges=(arrivals.begin * count).tolist(),
        aligned=bool((source % 16 == 0).all()),
    )


@dataclass(frozen=True)
class CopyTables:
    """Tasks of `begin[t]` to `begin[t + 1]` copies of `nbytes[t]` bytes, in order. `word`: bytes an element may have."""

    work: Work
    begin: torch.Tensor
    target: torch.Tensor
    source: torch.Tensor
    nbytes: torch.Tensor
    circular: torch.Tensor
    word: int


def copy_tables(
    batch: Ints, begin: Ints, target: Ints, source: Ints, nbytes: Ints, circular: Ints,
    batches: int, chunk_bytes: int, device: torch.device,
) -> CopyTables:  # fmt: skip
    """`batch`, `nbytes`, `circular` of each task `[N]`; `begin` `[N + 1]` and the addresses `[copies]`."""
    wide = not ((target % 16).any() or (source % 16).any() or (nbytes % WIDE).any())
    return CopyTables(
        work=Work.of(batch, nbytes, batches, chunk_bytes, device),
        begin=upload_numbers(begin, device),
        target=upload_numbers(target, device),
        source=upload_numbers(source, device),
        nbytes=upload_numbers(nbytes, device),
        circular=upload_numbers(circular, device),
        word=WIDE if wide else BYTE,
    )


def commit_tables(
    writes: Writes, at: Addresses, staging: Staging, chunk_bytes: int, device: torch.device
) -> CopyTables:
    """A task for each chain and tensor."""
    batches, count = len(writes.begin) - 1, len(at.nbytes)
    edges = np.flatnonzero(np.diff(writes.chain, prepend=NONE - 1, append=NONE - 1))
    length = np.diff(edges)
    target = at.of_slots(writes.layer, writes.slot)
    staged = at.of_rows(staging.data.data_ptr(), writes.from_row)
    source = np.where((writes.from_slot == NONE)[:, None], staged, at.of_slots(writes.layer, writes.from_slot))
    batch = np.repeat(np.arange(batches), np.diff(writes.begin))
    # Copies are stored chain by chain and, within a chain, tensor by tensor.
    first, chains = edges[:-1], len(length)
    lengths = np.repeat(length, count)
    begin = np.append(0, np.cumsum(lengths))
    row = np.repeat(np.repeat(first, count), lengths) + np.arange(begin[-1]) - np.repeat(begin[:-1], lengths)
    tensor = np.repeat(np.tile(np.arange(count), chains), lengths)
    return copy_tables(
        np.repeat(batch[first], count), begin, target[row, tensor], source[row, tensor], np.tile(at.nbytes, chains),
        np.repeat(writes.circular[edges[1:] - 1], count), batches, chunk_bytes, device,
    )  # fmt: skip


def send_tables(
    sends: Sends, step: Ints, steps: int, targets: Ints, at: Addresses, staging: Staging,
    keep: npt.NDArray[np.bool_], chunk_bytes: int, device: torch.device,
) -> CopyTables:  # fmt: skip
    """A task for each tensor of each expert that is sent to `targets` `[n, K]`, if it is one of `keep` `[n, K]`.

    `step` `[n]`, ascending: which of `steps` launches each belongs to.
    """
    staged = at.of_rows(staging.data.data_ptr(), sends.from_row)
    source = np.where((sends.slot == NONE)[:, None], staged, at.of_slots(sends.layer, sends.slot))
    n, k = np.nonzero(keep)
    return copy_tables(
        step[n], np.arange(len(n) + 1), targets[n, k], source[n, k], at.nbytes[k], np.zeros(len(n), dtype=np.int64),
        steps, chunk_bytes, device,
    )  # fmt: skip


def upload_numbers(values: Ints, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.int64)).to(device)
