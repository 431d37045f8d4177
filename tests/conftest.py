"""Shared by all tests: one migrated SQLite store, copied where a test needs a fresh one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with MLflow's schema: making one takes seconds, copying it none."""
    from pipeline.store import SQLITE, Store

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    Store(f"{SQLITE}{path}", "Default")
    return path


@pytest.fixture
def store_file(migrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh store in `tmp_path/outputs`, with `tmp_path` as the current folder."""
    (tmp_path / "outputs").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Path(shutil.copy(migrated, tmp_path / "outputs" / "mlflow.db"))
