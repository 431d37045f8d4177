"""SHA-256 of large files, several at a time, each remembered for as long as the file stays as it is.

A digest is remembered under the file's real path, in `$XDG_CACHE_HOME/moesaic/sha256` (default `~/.cache`), together
with size, inode and the times of the last change of content and of status, which any write, replacement or `touch`
alters. A file that has changed within the last seconds is not remembered: a second write could have the same times.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from stages import paths

THREADS = 8
"""Hashing lets other threads run: 8 keep a fast disk busy."""
WORTH_REMEMBERING = 1 << 20
"""Bytes; a smaller file is hashed in less time than its digest is looked up."""
SETTLED_SECONDS = 2.0
"""Longer than the steps of any file system's clock."""


def sha256_of_files(files: Sequence[Path]) -> list[str]:
    """The SHA-256 of the content of each file, in hexadecimal."""
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(_sha256, files))


def _sha256(file: Path) -> str:
    real = Path(os.path.realpath(file))
    state = _state(real)
    if state["size"] < WORTH_REMEMBERING:
        return paths.sha256(real)
    memory = _folder() / f"{hashlib.sha256(os.fsencode(real)).hexdigest()}.json"
    with suppress(OSError, ValueError, AttributeError):
        known = json.loads(memory.read_text(encoding="utf-8"))
        if known.get("state") == state and isinstance(known.get("sha256"), str):
            return known["sha256"]
    digest = paths.sha256(real)
    settled = time.time() - max(state["changed_ns"], state["written_ns"]) / 1e9 > SETTLED_SECONDS
    if settled and _state(real) == state:
        with suppress(OSError):  # a home that cannot be written to costs time, not the run
            paths.write_json(memory, {"file": str(real), "state": state, "sha256": digest})
    return digest


def _state(file: Path) -> dict[str, int]:
    """What changes with the file's content."""
    found = file.stat()
    return {
        "size": found.st_size,
        "inode": found.st_ino,
        "written_ns": found.st_mtime_ns,
        "changed_ns": found.st_ctime_ns,
    }


def _folder() -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "moesaic" / "sha256"
