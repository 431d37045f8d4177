"""The shipped experiments run as their first line says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import conf
from pipeline.cli import main
from tests.pipeline.test_cli import _quiet_logging  # noqa: F401

FOLDER = Path(conf.__file__).parent / "experiment"
OURS = ("olmoe", "mixtral", "deepseek_v3_32", "deepseek_v3_64")


@pytest.mark.parametrize("name", OURS)
def test_an_experiment_of_real_data_places(name: str, store_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    assert text.startswith(f"# @package _global_\n# moesaic run experiment={name}:")
    folder = store_file.parent / "run"
    assert main(["run", f"experiment={name}", "run.last=place", f"hydra.run.dir={folder}"]) == 0, (
        capsys.readouterr().err
    )
    metrics = json.loads((folder / "summary.json").read_text())["stages"]["place"]["metrics"]
    assert metrics["balancedness"] > metrics["balancedness_before"]
