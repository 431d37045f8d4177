"""Maps over other ranks and slots in one frame, and placements that keep what engines are given."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from stages import paths
from stages.placement import Placement, read_placement, write_placement
from stages.resize import framed, without_ranks

MAP = np.array([[0, 1, 2, 3, 4, 5]])  # three ranks of two slots


def test_a_frame_has_room_for_more_ranks_and_slots_and_leaves_out_what_has_no_place() -> None:
    assert framed(MAP, 3, 4, 3).tolist() == [[0, 1, -1, 2, 3, -1, 4, 5, -1, -1, -1, -1]]
    assert framed(MAP, 3, 2, 2).tolist() == [[0, 1, 2, 3]]
    assert framed(MAP, 3, 3, 1).tolist() == [[0, 2, 4]]
    assert framed(framed(MAP, 3, 5, 4), 5, 3, 2).tolist() == MAP.tolist()


def test_lost_ranks_are_replaced_or_closed_up() -> None:
    assert without_ranks(MAP, 3, [1], close_up=False).tolist() == [[0, 1, -1, -1, 4, 5]]
    assert without_ranks(MAP, 3, [1], close_up=True).tolist() == [[0, 1, 4, 5]]
    assert MAP.tolist() == [[0, 1, 2, 3, 4, 5]]


def test_engines_are_given_the_new_map_without_its_frame(tmp_path: Path) -> None:
    new = np.array([[0, 1, 2, 0]])
    placement = Placement(framed(new, 2, 4, 3), framed(MAP % 3, 3, 4, 3), 3, (4, 2, 2))
    write_placement(tmp_path, placement)
    assert json.loads((tmp_path / paths.PLACEMENT_JSON).read_text())["physical_to_logical_map"] == new.tolist()
    again = read_placement(tmp_path / paths.PLACEMENT)
    assert again.shape == (4, 2, 2)
    assert np.array_equal(again.physical_to_logical_map, placement.physical_to_logical_map)
    assert again.without_frame().physical_to_logical_map.tolist() == new.tolist()
    assert (again.slots_per_rank(4), again.without_frame().slots_per_rank(2)) == (2, 2)
