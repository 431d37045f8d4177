"""What a run kept while its store was away, and sent later, is what it sealed."""

from __future__ import annotations

import pytest

import pipeline.store
from pipeline.audit import audit
from pipeline.cli import main
from pipeline.writes import Write
from tests.pipeline.conftest import Toy


@pytest.mark.parametrize("gone_after", [4, 9, 15])
def test_a_run_that_was_sent_later_is_clean(toy: Toy, gone_after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The way to the store is cut after some writes: before the second stage began, in it, or at the end."""
    real, writes = pipeline.store.deliver, []

    def cut(client: object, write: Write, *, again: bool = False) -> str:
        writes.append(write)
        if len(writes) > gone_after:
            raise ConnectionError("gone")
        return real(client, write, again=again)  # type: ignore[arg-type]

    with monkeypatch.context() as away:
        away.setattr(pipeline.store, "deliver", cut)
        toy()
    assert (toy.directory / ".unsent").exists()
    command = ["sync", str(toy.directory), "--tracking-uri", toy.uri, "--experiment", toy.experiment]
    assert main(command) == 0
    assert not (toy.directory / ".unsent").exists()
    run = next(iter(toy.store.search("tags.`moesaic.kind` = 'run'")))
    assert audit(toy.store, run.info.run_id).findings == []
