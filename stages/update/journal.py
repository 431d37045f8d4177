"""The journal of one rank: which batches of an update it has committed, in a file that survives its death.

The file has its full size before the first byte of a weight moves, so that a full disk is found out then. It lies in a
folder named by the digest of the job: only the same job, cut into the same batches, continues from it.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

from stages.errors import MoesaicError

HEADER_BYTES = 512
COMMITTED = b"\1"


def journal_file(folder: Path, rank: int) -> Path:
    return folder / f"rank_{rank:05d}.journal"


class Journal:
    """Opened by its rank for an update of `batches` batches. `committed`: how many of them an earlier run committed."""

    def __init__(self, folder: Path, rank: int, batches: int) -> None:
        self.path = journal_file(folder, rank)
        self.committed = committed_batches(self.path, batches) or 0
        self._batches = batches
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                self._prepare(rank)
            except OSError:
                os.close(self._file)
                raise
        except OSError as error:
            raise MoesaicError(
                f"The journal {self.path} cannot be written ({error.strerror}): nothing was moved; make room there, or "
                "choose another folder with update.journal."
            ) from error

    def _prepare(self, rank: int) -> None:
        """Give the file its size and its head, and forget what lies behind a gap."""
        os.posix_fallocate(self._file, 0, HEADER_BYTES + max(1, self._batches))
        os.pwrite(self._file, json.dumps({"rank": rank, "batches": self._batches}).encode().ljust(HEADER_BYTES), 0)
        os.pwrite(self._file, COMMITTED * self.committed + bytes(self._batches - self.committed), HEADER_BYTES)
        os.fsync(self._file)

    def commit(self, batch: int) -> None:
        """Record that this rank has committed `batch`."""
        os.pwrite(self._file, COMMITTED, HEADER_BYTES + batch)
        self.committed = batch + 1

    def rewind(self, committed: int) -> None:
        """Keep the first `committed` batches alone: not every rank has committed more."""
        os.pwrite(self._file, bytes(self._batches - committed), HEADER_BYTES + committed)
        self.committed = committed

    def close(self) -> None:
        """Keep it only while there is something to go on with."""
        os.close(self._file)
        if self.committed == self._batches:
            self.path.unlink(missing_ok=True)
            with suppress(OSError):  # other ranks are not done yet
                self.path.parent.rmdir()


class NoJournal:
    """In place of a journal where nothing survives its rank: the process that holds the weights knows what it did."""

    committed = 0

    def commit(self, batch: int) -> None:
        """Nothing to record."""

    def rewind(self, committed: int) -> None:
        """Nothing to forget."""

    def close(self) -> None:
        """Nothing to close."""


def committed_batches(path: Path, batches: int) -> int | None:
    """How many batches the journal says are committed; None without one that can be read."""
    try:
        data = path.read_bytes()
        header = json.loads(data[:HEADER_BYTES])
    except (OSError, ValueError):
        return None
    if not isinstance(header, dict) or header.get("batches") != batches:
        return None
    flags = data[HEADER_BYTES : HEADER_BYTES + batches]
    return len(flags) - len(flags.lstrip(COMMITTED))
