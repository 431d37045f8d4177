"""The verdict artifact: was every byte where it belongs, and if not, which was not."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from stages import paths


@dataclass(frozen=True)
class Mismatch:
    """One tensor of one slot that is wrong. Checksums in hexadecimal.

    `against` says what it was compared with: `old holders`, `replicas` or `source` (generator or files).
    `whose`: whose bytes they are if they are those of another expert (or of the slot's old one), else empty.
    """

    layer: int
    slot: int
    rank: int
    logical_expert: int
    tensor: str
    expected: str
    found: str
    against: str
    whose: str = ""

    def __str__(self) -> str:
        text = (
            f"layer {self.layer} slot {self.slot} (rank {self.rank}) tensor {self.tensor}: expert "
            f"{self.logical_expert} should be {self.expected} by its {self.against}, found {self.found}"
        )
        return text + (f", the bytes of {self.whose}" if self.whose else "")


@dataclass(frozen=True)
class Verdict:
    """`compared`: checksums compared with an expectation; `seconds` and `nbytes` are those of the audit."""

    passed: bool
    compared: int
    mismatches: list[Mismatch]
    checks: list[str]
    nbytes: int
    seconds: float


def write_verdict(folder: Path, verdict: Verdict) -> tuple[str, ...]:
    paths.write_json(folder / paths.VERDICT, asdict(verdict))
    header = list(Mismatch.__dataclass_fields__)
    rows = [[str(value) for value in asdict(mismatch).values()] for mismatch in verdict.mismatches]
    text = "\n".join(",".join(row) for row in [header, *rows])
    paths.write_text(folder / paths.MISMATCHES_PREVIEW, text + "\n")
    return paths.VERDICT, paths.MISMATCHES_PREVIEW


def read_verdict(path: Path) -> Verdict:
    value = json.loads(path.read_text(encoding="utf-8"))
    return Verdict(**{**value, "mismatches": [Mismatch(**m) for m in value["mismatches"]]})
