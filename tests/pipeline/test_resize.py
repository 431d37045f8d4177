"""Growing and shrinking from the command line: what becomes of the maps, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.cli import main
from stages.placement import read_placement
from tests.pipeline.test_cli import _quiet_logging  # noqa: F401

RUN = ["run", "model=tiny", "collect=synthetic", "run.last=plan", "hydra.run.dir=out"]


def ranks_that_hold(expert_map: np.ndarray, ranks: int) -> list[int]:
    return np.flatnonzero((expert_map >= 0).reshape(len(expert_map), ranks, -1).any(axis=(0, 2))).tolist()


@pytest.mark.parametrize(
    ("overrides", "ranks", "before", "after"),
    [
        (["topology=2x2", "place.current_ranks=2"], 4, [0, 1], [0, 1, 2, 3]),
        (["topology=2x2", "place.ranks=2", "place=eplb"], 4, [0, 1, 2, 3], [0, 1]),
        (["topology=1x4", "place.ranks=1", "place=contiguous", "place.current_ranks=3"], 4, [0, 1, 2], [0]),
        (["topology=1x4", "place.current=spread.json", "place.lost_ranks=[2]"], 4, [0, 1, 3], [0, 1, 2, 3]),
        (["topology=1x2", "place.current=spread.json", "place.current_ranks=4", "place.lost_ranks=[0,3]"], 2, [0, 1], [0, 1]),
    ],
)  # fmt: skip
def test_maps_over_other_ranks(
    overrides: list[str], ranks: int, before: list[int], after: list[int], store_file: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    experts = 8
    spread = [[(slot + 2 * rank) % experts for rank in range(4) for slot in range(6)] for _ in range(4)]
    Path("spread.json").write_text(json.dumps({"physical_to_logical_map": spread}))
    assert main([*RUN, *overrides]) == 0, capsys.readouterr().err
    placement = read_placement(Path("out/place/placement.safetensors"))
    assert placement.current.shape == placement.physical_to_logical_map.shape
    assert ranks_that_hold(placement.current, ranks) == before
    assert ranks_that_hold(placement.physical_to_logical_map, ranks) == after
    deployed = np.array(json.loads(Path("out/place/placement.json").read_text())["physical_to_logical_map"])
    assert deployed.min() == 0
    assert all(set(row) == set(range(experts)) for row in deployed.tolist())
    metrics = json.loads(Path("out/summary.json").read_text())["stages"]["place"]["metrics"]
    assert 0 < metrics["balancedness_before"] <= 1
    assert metrics["redundant_experts_used"] == deployed.shape[1] - experts


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["topology=2x2", "place.ranks=3"], "place.ranks=3 is not possible: allowed are multiples of the 2 GPUs"),
        (["topology=1x2", "place.current_ranks=4"], "Of the current placement 4 ranks are left and the topology has 2"),
        (["topology=1x2", "place.lost_ranks=[7]"], "place.lost_ranks=[7] are not all among the 2 ranks"),
        (["topology=1x2", "place.ranks=0"], "place.ranks=0 is not possible"),
        (["topology=1x4", "place.lost_ranks=[1]"], "logical expert 2 is needed in slot"),
    ],
)
def test_what_cannot_be_is_said(
    overrides: list[str], words: str, store_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*RUN, *overrides]) == 2
    assert words in capsys.readouterr().err.splitlines()[-1]
