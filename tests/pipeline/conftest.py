"""A toy pipeline, declared by config alone, run for real against SQLite."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from pipeline.progress.view import Lines
from pipeline.runner import Request, run_pipeline
from pipeline.store import SQLITE, Store
from pipeline.summary import Summary

TOY = {
    "pipeline": {
        "stages": {
            "make": {
                "target": "tests.pipeline.toy.stages.make",
                "config": ["make", "seed"],
                "outputs": ["numbers.json"],
            },
            "double": {
                "target": "tests.pipeline.toy.stages.double",
                "config": ["double"],
                "inputs": {"numbers": "make/numbers.json"},
                "outputs": ["doubled.json"],
            },
            "sum": {
                "target": "tests.pipeline.toy.stages.add_up",
                "inputs": {"doubled": "double/doubled.json"},
                "outputs": ["sum.json"],
            },
        }
    },
    "make": {"count": 3},
    "double": {},
    "seed": 0,
    "run": {},
    "tracking": {},
}


class Toy:
    """Runs the toy pipeline; `lines` are what the last run said."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runs = 0
        self.lines: list[str] = []

    def __call__(self, *overrides: str, directory: Path | None = None) -> Summary:
        self.runs += 1
        self.lines = []
        self.directory = directory or self.folder / f"run{self.runs}"
        config = OmegaConf.merge(OmegaConf.create(TOY), OmegaConf.from_dotlist(list(overrides)))
        return run_pipeline(Request(config, self.directory, list(overrides), Lines(self.lines.append)))

    def states(self, summary: Summary) -> dict[str, str]:
        return {name: stage.state for name, stage in summary.stages.items()}

    @property
    def store(self) -> Store:
        return Store(f"{SQLITE}{self.folder / 'outputs' / 'mlflow.db'}", "moesaic")


@pytest.fixture
def toy(store_file: Path) -> Toy:
    return Toy(store_file.parent.parent)


ToyFactory = Callable[..., Any]
