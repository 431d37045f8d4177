"""What is said of slots after a failure."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stages.batches import reached
from stages.holdings import Holdings
from stages.update.inventory import by_journals, doubts, nowhere, told
from stages.update.journal import Journal
from stages.update.pipelined import batches_of, steps_of
from tests.stages.update.cases import Case, config_of, job_of

CASE = Case(nodes=2, slots_per_rank=3, experts=12, layers=4, kind="permutation", staged=2)
BASE = Holdings(9, [0, 0, 0], [], [], [])


@pytest.mark.parametrize(
    ("change", "per_rank", "said"),
    [
        ({}, 2, "nothing was moved"),
        ({"committed": [None] * 3}, 2, "nothing was moved"),
        ({"lost_ranks": [1]}, 2, "slots 2-3 of each layer are lost with it; nothing was moved"),
        ({"lost_ranks": [1]}, 1, "slot 1 of each layer is lost with it; nothing was moved"),
        (
            {"lost_ranks": [0, 2], "committed": [4, 5, 4]}, 3,
            ("slots 0-2 and 6-8 of each layer are lost with them; 4 of 9 batches are committed on all ranks: the same "
             "command goes on from there"),
        ),
        (
            {"committed": [4, None, 5]}, 3,
            ("4 of 9 batches are committed on all ranks whose journals can be seen from here (not those of rank 1): the same "
             "command goes on from there"),
        ),
        (
            {"committed": [1, 0, 1]}, 3,
            "0 of 9 batches are committed on all ranks: the same command goes on from there",
        ),
    ],
)  # fmt: skip
def test_how_far_it_has_come(change: dict[str, object], per_rank: int, said: str) -> None:
    assert told(replace(BASE, **change), per_rank) == said


def test_doubts() -> None:
    assert doubts(BASE) == ""
    assert doubts(replace(BASE, nowhere=[[3, 5]])) == "; no slot holds expert 5 of layer 3"
    assert doubts(replace(BASE, nowhere=[[3, 5], [4, 1]], wrong=[[2, 7, 0]] * 3)) == (
        "; no slot holds expert 5 of layer 3 and 1 more; slot 7 of layer 2 is not what it should be (3 wrong checksums)"
    )


def test_what_is_nowhere() -> None:
    job = job_of(CASE, 4)
    held = job.old.copy()
    assert nowhere(job, held) == []
    gone = int(held[2, 5])
    held[2, 5] = held[2, 4]
    assert nowhere(job, held) == [[2, gone]]
    held[2, 5] = -1
    assert nowhere(job, held) == [[2, gone]]


def test_each_rank_holds_what_its_own_journal_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    job, config = job_of(CASE, 4), config_of(CASE, 4)
    spent = config.staging_budget("gloo", job.most_arrivals())
    batches = batches_of(job, spent, steps_of(job.layers, None), config.topology.gpus_per_node)
    fresh = by_journals(config, job, "gloo", ())
    assert fresh is not None
    assert (fresh.committed, fresh.physical_to_logical_map) == ([None] * 4, job.old.tolist())
    folder = config.journal_folder(job.digest(spent, batches.digest()))
    assert folder is not None
    for rank, count in ((0, 2), (1, 3), (2, 2)):
        journal = Journal(folder, rank, len(batches))
        for batch in range(count):
            journal.commit(batch)
    found = by_journals(config, job, "gloo", [2])
    assert found is not None
    assert (found.batches, found.committed, found.lost_ranks) == (len(batches), [2, 3, 2, None], [2])
    held = np.array(found.physical_to_logical_map)
    for rank, count in ((0, 2), (1, 3)):
        own = slice(3 * rank, 3 * rank + 3)
        assert np.array_equal(held[:, own], reached(job.plan, batches, job.old, count)[:, own])
    assert (held[:, 6:] == -1).all()
    assert found.nowhere == nowhere(job, held) != []
    assert by_journals(replace(config, update=replace(config.update, journal=None)), job, "gloo", ()) is None
