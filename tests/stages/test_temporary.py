"""Temporary folders: gone after their use, and after the next use where their process was killed."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from stages.temporary import temporary_folder

ROOT = Path(__file__).parents[2]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_gone_after_the_block_however_it_ends(root: Path) -> None:
    with temporary_folder("a") as folder:
        assert folder.is_relative_to(root)
        assert list(folder.iterdir()) == []
        (folder / "file").touch()
    with pytest.raises(ZeroDivisionError), temporary_folder("b"):
        raise ZeroDivisionError
    assert list(root.iterdir()) == []


def test_what_a_killed_process_left_goes_and_what_is_in_use_stays(root: Path) -> None:
    code = (
        f"import tempfile; tempfile.tempdir = {str(root)!r}\n"
        "from stages.temporary import temporary_folder\n"
        "with temporary_folder('other') as folder: (folder / 'file').touch(); print(folder, flush=True); input()"
    )
    start = [sys.executable, "-c", code]
    with subprocess.Popen(start, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        folder = Path(process.stdout.readline().strip())
        (root / "moesaic-of-another-kind").mkdir()
        with temporary_folder("mine") as first, temporary_folder("mine") as second:
            assert first != second
            assert first.is_dir()
            assert folder.is_dir()
        process.send_signal(signal.SIGKILL)
    assert folder.is_dir()
    with temporary_folder("mine"):
        assert not folder.parent.exists()
    assert [path.name for path in root.iterdir()] == ["moesaic-of-another-kind"]
