"""Why a stage has to run: what its key differs in from the nearest one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline import checkpoint
from pipeline.checkpoint import Miss, look_up, made
from pipeline.keys import KeyParts
from pipeline.store import SQLITE, Store


def parts(stage: str = "place", **config: Any) -> KeyParts:
    return KeyParts(stage, "code", {"place": {"redundant_experts": 0, **config}}, {"load": "digest"}, {})


def why(store: Store, key: KeyParts, folder: Path) -> str:
    found = look_up(store, key, folder / "stage")
    assert isinstance(found, Miss)
    return found.why


def test_a_key_is_compared_with_those_that_this_process_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "_made", {})
    store = Store(f"{SQLITE}{tmp_path / 'mlflow.db'}", "moesaic")
    other = Store(f"{SQLITE}{tmp_path / 'mlflow.db'}", "other")
    assert why(store, parts(redundant_experts=8), tmp_path) == "first run"
    made(store, parts(redundant_experts=4))
    made(store, parts(redundant_experts=8, seconds=3))
    made(other, parts(redundant_experts=2))
    made(store, parts("plan"))
    assert why(store, parts(redundant_experts=8, seconds=5), tmp_path) == "config: place.seconds 3 → 5"
    assert why(store, parts(redundant_experts=6), tmp_path) == "config: place.redundant_experts 4 → 6"
    assert why(other, parts(redundant_experts=6), tmp_path) == "config: place.redundant_experts 2 → 6"
    for n in range(checkpoint.NEIGHBOURS):  # older ones are forgotten
        made(store, parts(redundant_experts=100 + n))
    assert why(store, parts(redundant_experts=6), tmp_path) == "config: place.redundant_experts 104 → 6"
