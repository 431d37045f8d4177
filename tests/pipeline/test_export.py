"""`moesaic export` in every engine's format, as a user types it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from pipeline.cli import ENGINES, main
from stages.engine_formats import FORMATS, LayerNumbers, read_stored
from tests.pipeline.test_cli import _quiet_logging  # noqa: F401

RUN = ["run", "model=tiny", "model.first_moe_layer=3", "collect=synthetic", "topology=1x2", "run.last=place"]


def test_the_command_knows_every_format() -> None:
    assert set(ENGINES) == set(FORMATS)


def test_every_format_reads_back_as_the_placement(store_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = store_file.parent.parent
    assert main([*RUN, f"hydra.run.dir={here}/one"]) == 0
    run_id = json.loads((here / "one" / "summary.json").read_text())["run_id"]
    placed = load_file(here / "one" / "place" / "placement.safetensors")["physical_to_logical_map"]
    capsys.readouterr()
    for engine, kind in FORMATS.items():
        for ending in kind.endings:
            out = here / f"{engine}{ending}"
            assert main(["export", run_id[:12], "--to", engine, "--out", str(out)]) == 0, capsys.readouterr().err
            assert f"4 MoE layers × {placed.shape[1]} slots, 2 ranks) for {kind.engine} to {out}" in (
                capsys.readouterr().out
            )
            rows = read_stored(out, "x").moe_rows(4, LayerNumbers(3), "x")
            if engine == "omni":  # which does not say in which slot of a device an expert lies
                rows, expected = (np.sort(m.reshape(4, 2, -1), axis=2).reshape(4, -1) for m in (rows, placed))
                np.testing.assert_array_equal(rows, expected)
            else:
                np.testing.assert_array_equal(rows, placed)
    updates = ["--layer-updates-per-iter", "3"]
    assert main(["export", run_id, "--to", "trtllm", "--out", str(here / "online.yaml"), *updates]) == 0
    assert "\nlayer_updates_per_iter: 3\n" in (here / "online.yaml").read_text()
    assert main(["export", run_id, "--to", "vllm", "--out", str(here / "map.jsonl"), *updates]) == 2
    assert "--layer-updates-per-iter is for --to trtllm; vLLM has no such thing" in capsys.readouterr().err
    assert main(["export", run_id, "--to", "omni", "--out", str(here / "map.json")]) == 2
    assert "its file must end in .npy" in capsys.readouterr().err
