"""The journal of a rank: what it keeps over a death, and what it does not believe."""

from __future__ import annotations

from pathlib import Path

import pytest

from stages.errors import MoesaicError
from stages.update.journal import HEADER_BYTES, Journal, committed_batches, journal_file
from tests.stages.update.trouble import no_growth


def test_what_is_committed_survives_and_goes_with_the_last_batch(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "job"
    journal = Journal(folder, 3, 5)
    path = journal_file(folder, 3)
    assert (journal.committed, path.stat().st_size) == (0, HEADER_BYTES + 5)
    for batch in range(3):
        journal.commit(batch)
        assert committed_batches(path, 5) == batch + 1
    again = Journal(folder, 3, 5)  # the first one's rank is dead
    assert again.committed == 3
    again.close()
    assert committed_batches(path, 5) == 3
    last = Journal(folder, 3, 5)
    for batch in (3, 4):
        last.commit(batch)
    last.close()
    assert not folder.exists()


def test_what_other_ranks_lack_is_taken_back(tmp_path: Path) -> None:
    journal = Journal(tmp_path, 0, 4)
    for batch in range(4):
        journal.commit(batch)
    journal.rewind(1)
    assert (journal.committed, committed_batches(journal.path, 4)) == (1, 1)
    journal.commit(1)
    assert committed_batches(journal.path, 4) == 2
    journal.close()
    assert journal.path.exists()


def test_other_ranks_keep_theirs(tmp_path: Path) -> None:
    folder = tmp_path / "job"
    mine, other = Journal(folder, 0, 1), Journal(folder, 1, 1)
    mine.commit(0)
    mine.close()
    assert not mine.path.exists()
    assert committed_batches(other.path, 1) == 0


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[1]".ljust(HEADER_BYTES) + b"\1\1", b"\xff" * 600, b'{"batches": 7}'.ljust(HEADER_BYTES) + b"\1" * 7],
    ids=["empty", "torn", "no header", "noise", "other batches"],
)
def test_what_is_no_journal_of_this_job_counts_for_nothing(content: bytes, tmp_path: Path) -> None:
    path = journal_file(tmp_path, 0)
    path.write_bytes(content)
    assert committed_batches(path, 2) is None
    journal = Journal(tmp_path, 0, 2)
    assert journal.committed == 0
    journal.commit(0)
    assert committed_batches(path, 2) == 1


def test_a_gap_ends_what_counts(tmp_path: Path) -> None:
    path = journal_file(tmp_path, 0)
    path.write_bytes(b'{"batches": 5}'.ljust(HEADER_BYTES) + b"\1\1\0\1\1")
    assert committed_batches(path, 5) == 2


def test_nothing_to_do_is_done_at_once(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "job", 0, 0)
    journal.close()
    assert not (tmp_path / "job").exists()


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        MoesaicError, match=r"^The journal .*/file/job/rank_00000\.journal cannot be written \(Not a dire"
    ):
        Journal(tmp_path / "file" / "job", 0, 1)


def test_no_room_leaves_no_file_open(tmp_path: Path) -> None:
    def open_files() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = open_files()
    with no_growth(), pytest.raises(MoesaicError, match=r"cannot be written \(File too large\): nothing was moved"):
        Journal(tmp_path, 0, 1)
    assert open_files() == before
