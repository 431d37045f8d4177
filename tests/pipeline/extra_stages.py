"""Stages that tests add to the real pipeline by config alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from stages.checksum_table import read_checksums, write_checksums
from stages.contract import Progress, StageResult


@dataclass
class CountConfig:
    pass


def count(config: CountConfig, inputs: Mapping[str, Path], folder: Path, progress: Progress) -> StageResult:
    """A sixth stage: how many checks the verdict made."""
    verdict = json.loads(inputs["verdict"].read_text())
    (folder / "count.json").write_text(json.dumps(verdict["compared"]))
    return StageResult(("count.json",), {"checks": verdict["compared"]})


@dataclass
class TamperOptions:
    layer: int = 1
    slot: int = 3
    tensor: int = 0


@dataclass
class TamperConfig:
    tamper: TamperOptions = field(default_factory=TamperOptions)


def tamper(config: TamperConfig, inputs: Mapping[str, Path], folder: Path, progress: Progress) -> StageResult:
    """Between update and verify: what the last pass would have read had one bit of one slot been wrong."""
    table = read_checksums(inputs["checksums"])
    after = table.after.copy()
    place = config.tamper
    after[place.layer, place.slot, place.tensor] ^= np.uint64(1)
    return StageResult(write_checksums(folder, replace(table, after=after)))
