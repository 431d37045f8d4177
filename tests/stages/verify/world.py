"""Slots with real bytes in them, an update that copies them, and ways to break it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from stages import paths
from stages.checksum import checksum_rows
from stages.checksum_table import ChecksumTable, write_checksums
from stages.contract import StageResult, silent
from stages.errors import Corruption
from stages.execution import Execution, write_execution
from stages.expert_map import EMPTY
from stages.functional import FunctionalProof, write_functional
from stages.model import ModelSpec, TensorSpec
from stages.placement import Placement, write_placement
from stages.synthetic import fill
from stages.verdict import Verdict, read_verdict
from stages.verify.config import VerifyOptions, VerifyStageConfig
from stages.verify.stage import verify

SPECS = [
    TensorSpec("w13_weight", [6, 5], "float8_e4m3fn"),
    TensorSpec("w13_scale", [3], "float32"),
    TensorSpec("w2_weight", [1100, 2], "bfloat16"),
]
W13, SCALE, W2 = range(3)
SEED = 7


class World:
    """`memory[k]`: uint8 `[L, P, bytes]` of tensor k in every slot, holding what the old map says."""

    def __init__(self, old: list[list[int]], new: list[list[int]], experts: int, ranks: int) -> None:
        self.old, self.new = np.array(old, dtype=np.int64), np.array(new, dtype=np.int64)
        self.experts, self.ranks = experts, ranks
        shape = self.old.shape
        self.memory = [torch.zeros((*shape, spec.nbytes), dtype=torch.uint8) for spec in SPECS]
        for layer, slot in np.argwhere(self.old != EMPTY).tolist():
            self.put(layer, slot, int(self.old[layer, slot]))
        self.before = np.zeros((*shape, len(SPECS)), dtype=np.uint64)

    def put(self, layer: int, slot: int, expert: int, tensors: tuple[int, ...] = (W13, SCALE, W2)) -> None:
        """Overwrite a slot with an expert of its layer."""
        for k in tensors:
            fill(self.memory[k][layer, slot : slot + 1], SEED, np.array([layer]), np.array([expert]), k)

    def copy(self, layer: int, source: int, slot: int, tensors: tuple[int, ...] = (W13, SCALE, W2)) -> None:
        for k in tensors:
            self.memory[k][layer, slot] = self.memory[k][layer, source]

    def flip_bit(self, layer: int, slot: int, tensor: int, bit: int) -> None:
        self.memory[tensor][layer, slot, bit // 8] ^= 1 << (bit % 8)

    def checksums(self) -> np.ndarray[tuple[int, int, int], np.dtype[np.uint64]]:
        """[L, P, K]."""
        return np.stack([checksum_rows(m.flatten(0, 1)).reshape(self.old.shape) for m in self.memory], axis=2)

    def update(self, *, but: tuple[int, int] | None = None) -> None:
        """Note the checksums and copy every expert into its new slots from its first old holder; `but` is a layer and
        slot that is not committed."""
        self.before = self.checksums()
        old = [m.clone() for m in self.memory]
        for layer, slot in np.argwhere((self.new != EMPTY) & (self.new != self.old)).tolist():
            holders = np.flatnonzero(self.old[layer] == self.new[layer, slot])
            if (layer, slot) == but:
                continue
            for k, memory in enumerate(self.memory):
                memory[layer, slot] = old[k][layer, holders[0]] if len(holders) else memory[layer, slot]

    def table(self) -> ChecksumTable:
        names = tuple(spec.name for spec in SPECS)
        return ChecksumTable(self.before, self.checksums(), self.old, self.new, names, self.ranks)

    def save(
        self,
        folder: Path,
        *,
        table: ChecksumTable | None = None,
        weights: str = "synthetic",
        proof: FunctionalProof | None = None,
    ) -> Mapping[str, Path]:
        """The input files of the verify stage."""
        write_functional(folder, proof or FunctionalProof())
        write_placement(folder, Placement(self.new, self.old, self.experts))
        write_checksums(folder, table or self.table())
        write_execution(folder, execution(self.ranks, weights))
        files = {
            "placement": paths.PLACEMENT,
            "checksums": paths.CHECKSUMS,
            "execution": paths.EXECUTION,
            "functional": paths.FUNCTIONAL,
        }
        return {name: folder / file for name, file in files.items()}


def execution(ranks: int, weights: str = "synthetic") -> Execution:
    return Execution(
        executor="reference",
        backend="gloo",
        ranks=ranks,
        hosts=1,
        device="cpu",
        torch="2.13.0",
        nccl=None,
        update_seconds=0.5,
        received_bytes=[10_000_000] * ranks,
        sent_bytes=[10_000_000] * ranks,
        link_gb_per_s=2.0,
        staging_bytes=0,
        checksum_seconds=0.1,
        rank_seconds=[0.5] * ranks,
        layer_seconds=[0.5],
        weights=weights,
    )


def config(*, source: bool = True, seed: int = SEED) -> VerifyStageConfig:
    return VerifyStageConfig(VerifyOptions(source), ModelSpec(tensors=SPECS), seed)


def run(
    inputs: Mapping[str, Path], folder: Path, *, source: bool = True, seed: int = SEED
) -> tuple[Verdict, StageResult]:
    """The verdict and what the stage returned, or attached to the `Corruption` it raised."""
    try:
        result = verify(config(source=source, seed=seed), inputs, folder, silent)
    except Corruption as corruption:
        if corruption.result is None:
            raise
        result = corruption.result
    return read_verdict(folder / paths.VERDICT), result
