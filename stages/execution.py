"""The execution artifact: what the update did, on what, and how long it took."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from stages import paths


@dataclass(frozen=True)
class Execution:
    """Bytes, seconds and GB/s (10^9 bytes) as in the design's metrics; the lists have one entry a rank.

    `received_bytes` and `sent_bytes` count what crossed between ranks; `layer_seconds` is the slowest rank's, of the
    reference executor; `split` is what the slowest rank spent in each part of the pipelined one (parts overlap).
    `peak_bytes` is the most memory that a rank took beside its weights, measured.
    `committed` of `batches` are done, `first` of them by an earlier run, and `resent` is how often one was sent again.
    `weights`: where the weights came from (`update.weights`), which decides what they can be recomputed from.
    """

    executor: str
    backend: str
    ranks: int
    hosts: int
    device: str
    torch: str
    nccl: str | None
    update_seconds: float
    received_bytes: list[int]
    sent_bytes: list[int]
    link_gb_per_s: float
    staging_bytes: int
    checksum_seconds: float
    rank_seconds: list[float]
    layer_seconds: list[float]
    weights: str = "synthetic"
    transport: str = ""
    peak_bytes: int = 0
    batches: int = 0
    committed: int = 0
    first: int = 0
    resent: int = 0
    split: dict[str, float] = field(default_factory=dict)

    @property
    def moved_bytes(self) -> int:
        return sum(self.received_bytes)

    @property
    def effective_gb_per_s(self) -> float:
        return max(self.received_bytes) / self.update_seconds / 1e9 if self.update_seconds > 0 else 0.0

    @property
    def link_efficiency(self) -> float:
        return self.effective_gb_per_s / self.link_gb_per_s if self.link_gb_per_s > 0 else 0.0


def write_execution(folder: Path, execution: Execution) -> tuple[str, ...]:
    paths.write_json(folder / paths.EXECUTION, asdict(execution))
    return (paths.EXECUTION,)


def read_execution(path: Path) -> Execution:
    return Execution(**json.loads(path.read_text(encoding="utf-8")))
