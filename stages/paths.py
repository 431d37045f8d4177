"""The one owner of names: artifact files of every stage, the run folder, and atomic writing into both."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOAD = "load.safetensors"
LOAD_PREVIEW = "load.csv"
PLACEMENT_JSON = "placement.json"
PLACEMENT = "placement.safetensors"
MOVES = "moves.csv"
GPU_BALANCE = "balance.safetensors"
TRANSFERS = "transfers.parquet"
TRANSFERS_PREVIEW = "transfers.csv"
TRAFFIC = "traffic.json"
EXECUTION = "execution.json"
CHECKSUMS = "checksums.parquet"
CHECKSUMS_PREVIEW = "checksums.csv"
TRACE = "trace.json"
SHARDS = "shards"
JOURNAL = "journal.json"
FUNCTIONAL = "functional.json"
VERDICT = "verdict.json"
MISMATCHES_PREVIEW = "mismatches.csv"
REPLAY = "replay.parquet"
REPLAY_PREVIEW = "replay.csv"

MANIFEST = "manifest.json"
CONFIG = "config.yaml"
SUMMARY = "summary.json"
PROGRESS = ".progress.json"
RECORD = "record.json"
REPORT = "report.html"
FIGURES = "figures"


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, moved into place when the block ends well and removed when it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: object) -> None:
    write_text(path, json.dumps(value, indent=1) + "\n")


def sha256(path: Path) -> str:
    """SHA-256 of a file, or of a folder: the names and contents of all files below it, in order of name."""
    if path.is_dir():
        digest = hashlib.sha256()
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            digest.update(f"{file.relative_to(path).as_posix()}\0{sha256(file)}\n".encode())
        return digest.hexdigest()
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
