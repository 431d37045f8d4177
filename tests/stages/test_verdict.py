"""The verdict artifact and the words for a mismatch."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from stages import paths
from stages.verdict import MISMATCH_COLUMNS, Mismatch, Verdict, mismatch_rows, read_verdict, write_verdict

SENTENCE = "layer 3 slot 7 (rank 1) tensor w2: expert 5 should be 00ff by its old holders, found 0a0b"
ODD = Mismatch(3, 7, 1, 5, 'w2, "x"', "00ff", "0a0b", "replicas", "expert 7, of layer 3", "before")


@pytest.mark.parametrize(
    ("against", "whose", "when", "text"),
    [
        ("old holders", "", "after", SENTENCE),
        ("old holders", "expert 7 of layer 3", "after", f"{SENTENCE}, the bytes of expert 7 of layer 3"),
        ("source", "", "before", f"{SENTENCE} before the update".replace("old holders", "source")),
    ],
)
def test_a_mismatch_in_words(against: str, whose: str, when: str, text: str) -> None:
    assert str(Mismatch(3, 7, 1, 5, "w2", "00ff", "0a0b", against, whose, when)) == text


@pytest.mark.parametrize("mismatches", [[], [ODD], [ODD, Mismatch(0, 0, 0, 0, "w", "1", "2", "source")]])
def test_round_trip(tmp_path: Path, mismatches: list[Mismatch]) -> None:
    verdict = Verdict(not mismatches, 12, mismatches, ["one check"], 10**12, 0.25, fault="a fault")
    assert write_verdict(tmp_path, verdict) == (paths.VERDICT, paths.MISMATCHES_PREVIEW)
    assert read_verdict(tmp_path / paths.VERDICT) == verdict


def test_the_table_is_proper_csv(tmp_path: Path) -> None:
    verdict = Verdict(False, 12, [ODD], [], 0, 1.0)
    write_verdict(tmp_path, verdict)
    with (tmp_path / paths.MISMATCHES_PREVIEW).open(encoding="utf-8", newline="") as stream:
        header, *rows = csv.reader(stream)
    assert tuple(header) == MISMATCH_COLUMNS
    assert rows == mismatch_rows(verdict)
    assert dict(zip(header, rows[0], strict=True)) == {
        "layer": "3",
        "slot": "7",
        "rank": "1",
        "expert": "5",
        "tensor": 'w2, "x"',
        "when": "before",
        "expected": "00ff",
        "found": "0a0b",
        "against": "replicas",
        "whose bytes": "expert 7, of layer 3",
    }
