"""The verdict artifact: was every byte where it belongs, and if not, which was not."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from stages import paths

MISMATCH_COLUMNS = ("layer", "slot", "rank", "expert", "tensor", "when", "expected", "found", "against", "whose bytes")


@dataclass(frozen=True)
class Mismatch:
    """One tensor of one slot that is wrong. Checksums in hexadecimal.

    `against` says what it was compared with: `old holders`, `replicas` or `source` (generator or files).
    `whose`: whose bytes they are if they are those of another expert (or of the slot's old one), else empty.
    `when`: `before` or `after` the update; `logical_expert` is the one that belonged into the slot then.
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
    when: str = "after"

    def __str__(self) -> str:
        text = (
            f"layer {self.layer} slot {self.slot} (rank {self.rank}) tensor {self.tensor}: expert "
            f"{self.logical_expert} should be {self.expected} by its {self.against}, found {self.found}"
        )
        text += " before the update" if self.when == "before" else ""
        return text + (f", the bytes of {self.whose}" if self.whose else "")


@dataclass(frozen=True)
class Verdict:
    """`compared`: checksums compared with an expectation; `seconds` and `nbytes` are those of the audit.

    `fault`: what made an audit of the bytes impossible, such as a map that was not updated; else empty.
    `outputs`: outputs of experts for random tokens that were compared, before the update and after it.
    `functional_fault`: in what they differ; else empty.
    """

    passed: bool
    compared: int
    mismatches: list[Mismatch]
    checks: list[str]
    nbytes: int
    seconds: float
    fault: str = ""
    outputs: int = 0
    functional_fault: str = ""


def mismatch_rows(verdict: Verdict) -> list[list[str]]:
    """One row a mismatch, for a table under `MISMATCH_COLUMNS`."""
    return [
        [
            *(str(value) for value in (m.layer, m.slot, m.rank, m.logical_expert, m.tensor, m.when)),
            *(m.expected, m.found, m.against, m.whose),
        ]
        for m in verdict.mismatches
    ]


def write_verdict(folder: Path, verdict: Verdict) -> tuple[str, ...]:
    """Write the JSON artifact and a CSV table of its mismatches; the names of both."""
    paths.write_json(folder / paths.VERDICT, asdict(verdict))
    with (
        paths.atomic(folder / paths.MISMATCHES_PREVIEW) as temporary,
        temporary.open("w", encoding="utf-8", newline="") as stream,
    ):
        csv.writer(stream, lineterminator="\n").writerows([MISMATCH_COLUMNS, *mismatch_rows(verdict)])
    return paths.VERDICT, paths.MISMATCHES_PREVIEW


def read_verdict(path: Path) -> Verdict:
    value = json.loads(path.read_text(encoding="utf-8"))
    return Verdict(**{**value, "mismatches": [Mismatch(**m) for m in value["mismatches"]]})
