"""The journal artifact, and that it can say what is in place now."""

from __future__ import annotations

import json
from pathlib import Path

from stages.expert_map import read_map
from stages.holdings import Holdings, read_holdings, write_holdings


def test_what_is_written_is_read_and_serves_as_the_current_placement(tmp_path: Path) -> None:
    holdings = Holdings(7, [3, None, 4], [1], [[0, 2]], [[0, 1, -1], [2, 1, 0]], 12, [[1, 2, 0]])
    assert write_holdings(tmp_path, holdings) == ("journal.json",)
    path = tmp_path / "journal.json"
    assert read_holdings(path) == holdings
    assert "  [0, 1, -1],\n  [2, 1, 0]\n" in path.read_text()
    assert read_map(path, "place.current").tolist() == [[0, 1, -1], [2, 1, 0]]
    assert set(json.loads(path.read_text())) == {
        "batches", "committed", "lost_ranks", "nowhere", "physical_to_logical_map", "checked", "wrong",
    }  # fmt: skip
