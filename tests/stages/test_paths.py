"""Atomic writing leaves the whole file or nothing, and digests follow content and names alone."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from stages import paths


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def test_atomic_writes_appear_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "er" / "file.json"
    with paths.atomic(target) as temporary:
        assert temporary.parent == target.parent
        assert temporary.suffix == ".json"
        temporary.write_text("new", encoding="utf-8")
        assert not target.exists()
    assert target.read_text(encoding="utf-8") == "new"
    assert target.stat().st_mode & 0o777 == 0o644
    assert names(target.parent) == ["file.json"]


def test_an_error_leaves_what_was_there_and_nothing_beside_it(tmp_path: Path) -> None:
    target = tmp_path / "file.json"
    paths.write_text(target, "old")

    def fail() -> None:
        with paths.atomic(target) as temporary:
            temporary.write_text("half", encoding="utf-8")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert target.read_text(encoding="utf-8") == "old"
    assert names(tmp_path) == ["file.json"]


def test_a_writer_that_removes_its_temporary_file_is_an_error(tmp_path: Path) -> None:
    def fail() -> None:
        with paths.atomic(tmp_path / "file") as temporary:
            temporary.unlink()

    with pytest.raises(FileNotFoundError):
        fail()
    assert names(tmp_path) == []


def test_write_json_reads_back(tmp_path: Path) -> None:
    value = {"a": [1, 2.5, None, "é"], "b": {"c": True}}
    paths.write_json(tmp_path / "x.json", value)
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == value


def test_sha256_of_a_file_is_the_usual_one(tmp_path: Path) -> None:
    data = os.urandom(3 << 20)
    (tmp_path / "x").write_bytes(data)
    assert paths.sha256(tmp_path / "x") == hashlib.sha256(data).hexdigest()


def tree(folder: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return paths.sha256(folder)


def test_sha256_of_a_folder_follows_names_and_contents(tmp_path: Path) -> None:
    files = {"a": "1", "b/c": "2", "b/d": "3"}
    first = tree(tmp_path / "first", files)
    assert tree(tmp_path / "second", dict(reversed(files.items()))) == first
    os.utime(tmp_path / "second" / "a", (0, 0))
    assert paths.sha256(tmp_path / "second") == first
    others = [
        {"a": "2", "b/c": "1", "b/d": "3"},
        {"a": "1", "b/c": "2", "b/e": "3"},
        {"a": "1", "b/c": "2"},
        {"a": "1", "bc": "2", "b/d": "3"},
        {},
    ]
    (tmp_path / "4").mkdir()
    digests = {tree(tmp_path / str(n), other) for n, other in enumerate(others)}
    assert len(digests | {first}) == len(others) + 1
