"""Digests of files: right, and remembered only while the file stays as it is."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import pytest

from stages import digests, paths


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files count as settled at once, and small ones are remembered too."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "WORTH_REMEMBERING", 0)
    monkeypatch.setattr(digests, "SETTLED_SECONDS", -1.0)
    return tmp_path / "cache" / "moesaic" / "sha256"


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files whose content was read."""
    found: list[Path] = []
    real = paths.sha256

    def watched(path: Path) -> str:
        found.append(path)
        return real(path)

    monkeypatch.setattr(paths, "sha256", watched)
    return found


def test_each_file_gets_its_digest_in_order(tmp_path: Path) -> None:
    files = [tmp_path / f"{n}.bin" for n in range(20)]
    for n, file in enumerate(files):
        file.write_bytes(bytes([n]) * n)
    expected = [hashlib.sha256(bytes([n]) * n).hexdigest() for n in range(20)]
    assert digests.sha256_of_files(files) == expected
    assert digests.sha256_of_files(files[::-1]) == expected[::-1]


def test_what_has_not_changed_is_not_read_again(tmp_path: Path, hashed: list[Path]) -> None:
    file, link = tmp_path / "a", tmp_path / "link"
    file.write_bytes(b"weights")
    link.symlink_to(file)
    first = digests.sha256_of_files([file])
    assert digests.sha256_of_files([file, link]) == first * 2
    assert hashed == [file]


@pytest.mark.parametrize("how", ["write", "write in place, with the old times", "replace", "grow"])
def test_what_has_changed_is_read_again(how: str, tmp_path: Path, hashed: list[Path]) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"weights")
    (first,) = digests.sha256_of_files([file])
    times = file.stat()
    if how == "replace":
        (tmp_path / "b").write_bytes(b"WEIGHTS")
        os.utime(tmp_path / "b", ns=(times.st_atime_ns, times.st_mtime_ns))
        (tmp_path / "b").replace(file)
    else:
        time.sleep(0.02)  # a step of the file system's clock
        with file.open("ab" if how == "grow" else "r+b") as stream:
            stream.write(b"WEIGHTS")
        if "times" in how:
            os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    (second,) = digests.sha256_of_files([file])
    assert second == hashlib.sha256(file.read_bytes()).hexdigest() != first
    assert len(hashed) == 2


def test_a_file_just_written_is_not_remembered(
    tmp_path: Path, hashed: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "SETTLED_SECONDS", 60.0)
    file = tmp_path / "a"
    file.write_bytes(b"weights")
    digests.sha256_of_files([file])
    digests.sha256_of_files([file])
    assert len(hashed) == 2


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"state": 1}', "not json", '{"sha256": 5}'])
def test_a_broken_memory_is_as_good_as_none(content: str, tmp_path: Path, cache: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"weights")
    digests.sha256_of_files([file])
    (memory,) = cache.iterdir()
    memory.write_text(content)
    assert digests.sha256_of_files([file]) == [hashlib.sha256(b"weights").hexdigest()]


def test_a_cache_that_cannot_be_written_costs_time_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "no").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "no"))
    file = tmp_path / "a"
    file.write_bytes(b"weights")
    assert digests.sha256_of_files([file]) == [hashlib.sha256(b"weights").hexdigest()]
