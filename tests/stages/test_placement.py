"""The placement artifact keeps both maps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from stages import paths
from stages.expert_map import read_map
from stages.placement import Placement, read_placement, write_placement

NEW, OLD = np.array([[0, 1, 2, 1], [2, -1, 0, 1]]), np.array([[0, 1, 2, 0], [0, 1, 2, -1]])


def test_round_trip(tmp_path: Path) -> None:
    assert write_placement(tmp_path, Placement(NEW, OLD, 3)) == (paths.PLACEMENT, paths.PLACEMENT_JSON)
    found = read_placement(tmp_path / paths.PLACEMENT)
    np.testing.assert_array_equal(found.physical_to_logical_map, NEW)
    np.testing.assert_array_equal(found.current, OLD)
    assert found.physical_to_logical_map.dtype == np.int64
    assert (found.experts, found.layers, found.slots) == (3, 2, 4)


def test_both_files_read_as_the_new_map(tmp_path: Path) -> None:
    write_placement(tmp_path, Placement(NEW, OLD, 3))
    for name in (paths.PLACEMENT, paths.PLACEMENT_JSON):
        assert read_map(tmp_path / name, "place.path").tolist() == NEW.tolist()
    value = json.loads((tmp_path / paths.PLACEMENT_JSON).read_text(encoding="utf-8"))
    assert value == {"physical_to_logical_map": NEW.tolist()}


def test_the_same_placement_has_the_same_digest(tmp_path: Path) -> None:
    write_placement(tmp_path / "a", Placement(NEW, OLD, 3))
    write_placement(tmp_path / "b", Placement(np.asfortranarray(NEW), np.asfortranarray(OLD), 3))
    assert paths.sha256(tmp_path / "a") == paths.sha256(tmp_path / "b")
