"""Which death explains the others, and how it is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stages.contract import Count
from stages.update.failures import Death, recorded_error, root_cause, tidy
from stages.update.progress_board import DOING, Phase, ProgressBoard, Report, where

UPDATE = Phase.update
LOST = "RuntimeError: [/x/gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:34200: Connection reset by peer."
NCCL_LOST = "DistBackendError: NCCL error: remote process exited or there was a network error, NCCL version 2.28"


@pytest.mark.parametrize(
    ("deaths", "rank"),
    [
        ([Death(0, 1, UPDATE, 3, 10, LOST), Death(1, -9, UPDATE, 3)], 1),
        ([Death(0, 1, UPDATE, 3, 10, "ValueError: x"), Death(1, -11, UPDATE, 3)], 1),
        ([Death(0, 1, UPDATE, 3, 20, "ValueError: x"), Death(1, 1, UPDATE, 3, 10, "ValueError: y")], 1),
        ([Death(0, 1, UPDATE, 3, 10, LOST), Death(1, 1, UPDATE, 3, 20, "ValueError: y")], 1),
        ([Death(0, -6, UPDATE, 3), Death(1, 1, UPDATE, 3, 20, "ValueError: y")], 1),
        ([Death(0, 1, UPDATE, 3, 10, NCCL_LOST), Death(1, -6, UPDATE, 3)], 1),
        ([Death(0, 1, UPDATE, 3, 10, LOST), Death(1, 0, UPDATE, 3)], 1),
        ([Death(0, 1, UPDATE, 3, 20, LOST), Death(1, 1, UPDATE, 3, 10, LOST)], 1),
        ([Death(1, -9, UPDATE, 3), Death(2, -9, UPDATE, 3)], 1),
    ],
)
def test_root_cause(deaths: list[Death], rank: int) -> None:
    assert root_cause(deaths).rank == rank
    assert root_cause(deaths[::-1]).rank == rank


@pytest.mark.parametrize(
    ("death", "text"),
    [
        (Death(3, -9, UPDATE, 7), "rank 3 was killed by SIGKILL in layer 7 of the update"),
        (Death(3, -250, UPDATE, 7), "rank 3 was killed by signal 250 in layer 7 of the update"),
        (Death(2, 1, UPDATE, 5, 1, "RuntimeError: no"), "rank 2 failed in layer 5: RuntimeError: no"),
        (Death(1, 1, Phase.connect, 0, 1, "OSError: no"), "rank 1 failed while connecting to peers: OSError: no"),
        (Death(0, -9, Phase.fill, 0), "rank 0 was killed by SIGKILL while filling slots"),
        (Death(0, 255, UPDATE, 2), "rank 0 ended with exit code 255 in layer 2 of the update"),
    ],
)
def test_sentence(death: Death, text: str) -> None:
    assert str(death) == text


def test_errors_of_torch_become_one_line() -> None:
    assert tidy(LOST + " This is typically caused by a remote worker.\nCheck") == (
        "RuntimeError: Read error [127.0.0.1]:34200: Connection reset by peer."
    )
    assert tidy("NCCL error in: ../torch/csrc/distributed/c10d/NCCLUtils.cpp:77, unhandled\nLast error:\n x") == (
        "NCCL error in: unhandled Last error: x"
    )
    assert len(tidy("long " * 1000)) == 400


def test_recorded_errors(tmp_path: Path) -> None:
    file = tmp_path / "error.json"
    assert recorded_error(file) == ("", "")
    file.write_text("{")
    assert recorded_error(file) == ("", "")
    file.write_text(json.dumps({"message": {"message": "ValueError: x", "extraInfo": {"py_callstack": "Trace"}}}))
    assert recorded_error(file) == ("ValueError: x", "Trace")


def test_board_is_shared_and_remembers_the_first_failure(tmp_path: Path) -> None:
    mine, other = ProgressBoard(tmp_path / "board", 3), ProgressBoard(tmp_path / "board", 3)
    for rank, layer in enumerate((4, 2, 9)):
        mine.report(rank, Report(UPDATE, layer, 12))
    assert other.of(2) == (UPDATE, 9, 0)
    assert other.overall() == Report(UPDATE, 2, 12)
    other.report_failure(1)
    failed_at = mine.of(1)[2]
    mine.report_failure(1)
    assert failed_at > 0
    assert other.of(1)[2] == failed_at


def test_the_board_adds_up_what_has_arrived(tmp_path: Path) -> None:
    board = ProgressBoard(tmp_path / "board", 2)
    board.report(0, Report(Phase.batch, 3, 7, 300, 700))
    board.report(1, Report(Phase.batch, 2, 7, 100, 400))
    assert board.overall().counts == [Count("batches", 2, 7), Count("bytes", 400, 1100)]
    board.report(0, Report(Phase.checksum_after))
    assert board.overall().counts == [Count("batches", 2, 7), Count("bytes", 400, 1100)]
    board.report(1, Report(Phase.checksum_after))
    assert board.overall().counts == []
    assert Report(Phase.batch, 2, 4).fraction < Report(Phase.batch, 3, 4).fraction < Report(Phase.done).fraction == 1


def test_every_phase_has_words() -> None:
    assert set(DOING) == set(Phase)
    assert where(Phase.link, 0) == "while measuring the link"
