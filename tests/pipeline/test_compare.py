"""`moesaic compare A B`: config, inputs, metrics, and which experts are on other GPUs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from pipeline.cli import main
from pipeline.summary import read_summary
from stages.moves import moves_between, write_moves
from stages.placement import read_placement
from tests.pipeline.test_cli import _quiet_logging  # noqa: F401

TINY = ("model=tiny", "collect=synthetic", "run.last=plan")


def run(here: Path, name: str, *overrides: str) -> str:
    assert main(["run", *TINY, *overrides, f"hydra.run.dir={here / name}"]) == 0
    return str(read_summary(here / name / "summary.json").run_id)


def test_two_placements_are_compared_expert_by_expert(store_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = store_file.parent.parent
    a = run(here, "a", "topology=1x2", "place=contiguous")
    b = run(here, "b", "topology=2x2", "place=eplb", "place.redundant_experts=4")
    capsys.readouterr()
    assert main(["compare", a[:10], b, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [each["run_id"] for each in found["runs"]] == [a, b]
    config = {each["name"]: (each["a"], each["b"]) for each in found["config"]}
    assert config["place.algorithm"] == ("contiguous", "eplb")
    assert config["topology.nodes"] == ("1", "2")
    assert not any(name.startswith(("run.", "tracking.", "model.")) for name in config)
    inputs = {each["name"] for each in found["inputs"]}
    assert "plan reads placement" in inputs
    assert not any(name.startswith("dataset") for name in inputs)  # both read the same loads
    metrics = {each["name"]: (each["a"], each["b"]) for each in found["metrics"]}
    summaries = [read_summary(here / name / "summary.json") for name in "ab"]
    assert metrics["place.balancedness"] == tuple(s.stages["place"].metrics["balancedness"] for s in summaries)
    maps = [read_placement(here / name / "place" / "placement.safetensors") for name in "ab"]
    moved = {(move["layer"], move["expert"]): move for move in found["placements"]["moves"]}
    for layer in range(maps[0].layers):
        for expert in range(maps[0].experts):
            on = [
                sorted((np.flatnonzero(m.physical_to_logical_map[layer] == expert) // (m.slots // ranks)).tolist())
                for m, ranks in zip(maps, (2, 4), strict=True)
            ]
            assert ((layer, expert) in moved) == (on[0] != on[1])
            if on[0] != on[1]:
                move = moved[layer, expert]
                assert [move["before"], move["after"]] == on
                assert move["arrives"] == sorted(set(on[1]) - set(on[0]))
                assert move["leaves"] == sorted(set(on[0]) - set(on[1]))
    assert main(["compare", a, b]) == 0
    out = capsys.readouterr().out
    assert f"Placements: {len(moved)} of 32 experts are on other GPUs" in out
    assert re.search(r"place.algorithm +contiguous +eplb", out)


def test_what_cannot_be_compared_is_said(store_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = store_file.parent.parent
    a = run(here, "a", "topology=1x2")
    again = run(here, "again", "topology=1x2")
    loads = run(here, "loads", "topology=1x2", "run.last=collect")
    other = run(here, "other", "topology=1x2", "model.layers=2")
    capsys.readouterr()
    assert main(["compare", a, again]) == 0
    out = capsys.readouterr().out
    assert "every GPU holds the same experts, in all 4 layers." in out
    assert out.count("  the same") == 4
    assert main(["compare", a, loads]) == 0
    assert f"cannot be compared: {loads[:8]} left no placement." in capsys.readouterr().out
    assert main(["compare", a, other]) == 0
    assert "they are of 4 layers × 8 experts and 2 layers × 8 experts." in capsys.readouterr().out
    assert main(["compare", a, a]) == 2
    assert "are the same run" in capsys.readouterr().err


def test_moves_are_a_table_that_people_read(tmp_path: Path) -> None:
    old, new = np.array([[0, 1, 2, 0]]), np.array([[0, 2, 1, -1]])
    moves = moves_between(old, new, 3, 2, 2)
    assert moves.arrivals == 2
    write_moves(tmp_path, moves)
    assert (tmp_path / "moves.csv").read_text().splitlines() == [
        "layer,expert,GPUs before,GPUs after,arrives on,leaves",
        "0,0,0 1,0,,1",
        "0,1,0,1,1,0",
        "0,2,1,0,0,1",
    ]
