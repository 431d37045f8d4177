"""The folder of a run: written by one run at a time, and never over what others made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from pipeline.outbox import RUN_LOCK
from stages import paths
from stages.errors import BadInput

WAIT_SECONDS = 0.2


@contextmanager
def owned(directory: Path, *, patient: bool = False) -> Iterator[None]:
    """The run folder, for this run alone. `patient`: wait until another one has left it."""
    directory.mkdir(parents=True, exist_ok=True)
    lock = FileLock(directory / RUN_LOCK, blocking=patient)
    try:
        lock.acquire(poll_interval=WAIT_SECONDS)
    except Timeout as error:
        raise BadInput(f"Another run is writing into {directory}: give this one its own hydra.run.dir.") from error
    try:
        yield
    finally:
        lock.release()


def check_target(folder: Path) -> None:
    """Raise `BadInput` unless a stage may put its files there: nothing that others made is ever replaced."""
    if (folder.exists() or folder.is_symlink()) and not ours(folder):
        raise BadInput(f"{folder} is there already and was not made by moesaic: choose another hydra.run.dir.")


def ours(folder: Path) -> bool:
    return folder.is_dir() and not folder.is_symlink() and (folder / paths.MANIFEST).is_file()
