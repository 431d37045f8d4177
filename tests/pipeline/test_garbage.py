"""The garbage collector while runs go on."""

from __future__ import annotations

import gc
from contextlib import suppress

import pytest

from pipeline import app
from pipeline.garbage import SELDOM, seldom_collected


def test_everything_is_collected_seldom_within_the_block_alone() -> None:
    before = gc.get_threshold()
    with seldom_collected():
        with suppress(KeyError), seldom_collected():
            assert gc.get_threshold() == (*before[:2], SELDOM)
            raise KeyError
        assert gc.get_threshold() == (*before[:2], SELDOM)
    assert gc.get_threshold() == before


def test_a_run_collects_seldom(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[int] = []
    monkeypatch.setattr(app, "run_pipeline", lambda request: seen.append(gc.get_threshold()[2]) or 1 / 0)
    before = gc.get_threshold()
    assert app.run(["model=tiny", "run.last=plan"]) == 1
    assert "division by zero" in capsys.readouterr().err
    assert (seen, gc.get_threshold()) == ([SELDOM], before)
