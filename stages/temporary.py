"""Temporary folders that do not outlive their use, not even where the process that made them was killed."""

from __future__ import annotations

import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PREFIX = "moesaic-"
HELD = ".held"


@contextmanager
def temporary_folder(kind: str) -> Iterator[Path]:
    """A new folder in the temporary directory, removed after the block. Those that killed processes left go too: each
    is held by a lock, which the kernel lets go with its process."""
    root = Path(tempfile.gettempdir())
    _remove_abandoned(root)
    folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{kind}-", dir=root))
    try:
        with (folder / f"{HELD}.new").open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            (folder / f"{HELD}.new").rename(folder / HELD)  # locked before others can see it
            own = folder / "own"
            own.mkdir()
            yield own
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_abandoned(root: Path) -> None:
    for held in root.glob(f"{PREFIX}*/{HELD}"):
        with suppress(OSError), held.open("r+") as stream:  # one that is held, or of another user, stays
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(held.parent, ignore_errors=True)
