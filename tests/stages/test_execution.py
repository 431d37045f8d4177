"""The execution artifact, and the numbers that follow from it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from stages import paths
from stages.execution import read_execution, write_execution
from tests.stages.verify.world import execution


def test_round_trip(tmp_path: Path) -> None:
    done = dataclasses.replace(execution(3), nccl="2.28.9", weights="safetensors")
    assert write_execution(tmp_path, done) == (paths.EXECUTION,)
    assert read_execution(tmp_path / paths.EXECUTION) == done


def test_an_artifact_without_weights_is_of_synthetic_ones(tmp_path: Path) -> None:
    write_execution(tmp_path, execution(1))
    path = tmp_path / paths.EXECUTION
    value = json.loads(path.read_text(encoding="utf-8"))
    del value["weights"]
    paths.write_json(path, value)
    assert read_execution(path).weights == "synthetic"


def test_speeds_are_those_of_the_busiest_rank() -> None:
    done = dataclasses.replace(
        execution(3), received_bytes=[10**9, 3 * 10**9, 0], update_seconds=2.0, link_gb_per_s=6.0
    )
    assert done.moved_bytes == 4 * 10**9
    assert done.effective_gb_per_s == pytest.approx(1.5)
    assert done.link_efficiency == pytest.approx(0.25)


def test_nothing_moved_in_no_time_is_no_error() -> None:
    done = dataclasses.replace(execution(2), received_bytes=[0, 0], update_seconds=0.0, link_gb_per_s=0.0)
    assert (done.moved_bytes, done.effective_gb_per_s, done.link_efficiency) == (0, 0.0, 0.0)
