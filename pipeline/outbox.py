"""What a run could not write to the tracking store waits in its folder: nothing is lost while the store is away, and
nothing is written twice when it is back.

`DIR/.unsent` is there only while something waits: `writes.jsonl` holds the writes in order, `files/` what a write would
upload from outside the run folder, `state.json` how many were delivered and which ids the store gave to runs that began
without it.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.credentials import hidden
from pipeline.writes import Write
from stages import paths
from stages.errors import sentence_of

FOLDER = ".unsent"
RUN_LOCK = ".lock"  # held by the run that writes into a folder
WRITES, STATE, FILES = "writes.jsonl", "state.json", "files"
TRY_AGAIN_SECONDS = 20.0
OUR_FAULT = ("INVALID_PARAMETER_VALUE", "INVALID_STATE")

Deliver = Callable[[Write, bool], str]
"""Makes a write, whether or not it may have been made before; the id of its run. Raises what stands in the way."""


def is_outage(error: Exception) -> bool:
    """Whether the store, or the way to it, is to blame: what it refuses by right is an error of ours."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    if isinstance(error, MlflowException):
        return error.error_code not in OUR_FAULT
    of_requests = isinstance(error, OSError) and error.errno is None
    return of_requests or isinstance(error, SQLAlchemyError)


@contextmanager
def suppress_outage() -> Iterator[None]:
    """The block ends early, without a word, if the store goes away."""
    try:
        yield
    except Exception as error:
        if not is_outage(error):
            raise


def waits(directory: Path) -> bool:
    """Whether the run in `directory` has something that its store lacks."""
    return (directory / FOLDER / WRITES).is_file()


@dataclass
class Outbox:
    """The writes of the run in `directory`, delivered at once or kept. `tell` gets a line when the store goes and
    when it is back. `ids`: what stood in for a run -> the id that the store gave it."""

    directory: Path
    deliver: Deliver
    tell: Callable[[str], None]
    ids: dict[str, str] = field(default_factory=dict)
    tried: float | None = None
    """When the store was last found away; None if nothing waits."""

    def __post_init__(self) -> None:
        if waits(self.directory):
            self.tried = -math.inf
            self.ids = dict(self._state()["ids"])

    def send(self, write: Write) -> str:
        """Deliver what waits and then `write`, or keep it; the id of its run, or what stands in for it."""
        if self.tried is not None and time.monotonic() - self.tried < TRY_AGAIN_SECONDS:
            return self._keep(write)
        try:
            self.flush()
            return self._deliver(write, again=False)
        except Exception as error:
            if not isinstance(error, OSError) and not is_outage(error):  # the disk of the artifacts may be full
                raise
            if self.tried is None:
                self.tell(
                    f"The tracking store is away ({hidden(sentence_of(error))}): the record waits in {self.directory}."
                )
            self.tried = time.monotonic()
            return self._keep(write)

    def flush(self) -> int:
        """Deliver all that waits, in order; how much it was. What stands in the way is raised, and loses nothing."""
        if not waits(self.directory):
            return 0
        folder, state = self.directory / FOLDER, self._state()
        lines = (folder / WRITES).read_text(encoding="utf-8").splitlines()
        for line in lines[state["delivered"] :]:
            try:
                write = Write(**json.loads(line))
            except ValueError:  # the process was killed while it wrote the line
                write = None
            if write is not None:
                self._deliver(write, again=True)
            state = {"delivered": state["delivered"] + 1, "ids": self.ids}
            paths.write_json(folder / STATE, state)
        (folder / WRITES).unlink()
        shutil.rmtree(folder)
        if self.tried is not None:
            self.tell("The tracking store is back: it has all that waited.")
        self.tried = None
        return len(lines)

    def last_try(self) -> str | None:
        """At the end of a run: deliver what waits, however short ago the store was away. What stands in the way."""
        try:
            self.flush()
        except Exception as error:
            if not isinstance(error, OSError) and not is_outage(error):
                raise
            return hidden(sentence_of(error))
        return None

    def _deliver(self, write: Write, *, again: bool) -> str:
        known = self._with_real_ids(write)
        if known.kind == "files":
            source = Path(known.data["source"])
            if not source.exists():
                self.tell(f"{source} is gone: it could not be uploaded.")
                return known.run_id
            self._correct(source)
        made = self.deliver(known, again)
        if write.kind == "start" and again:
            self.ids[write.run_id] = made
        return made

    def _keep(self, write: Write) -> str:
        folder = self.directory / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        if write.kind == "files":
            write = replace(write, data={**write.data, "source": self._safe(Path(write.data["source"]))})
        if not (folder / STATE).exists():
            paths.write_json(folder / STATE, {"delivered": 0, "ids": self.ids})
        line = json.dumps(asdict(write)) + "\n"
        with (folder / WRITES).open("a", encoding="utf-8") as stream:
            stream.write(line if _ends_well(folder / WRITES) else f"\n{line}")
            stream.flush()
            os.fsync(stream.fileno())
        return write.run_id

    def _safe(self, source: Path) -> str:
        """`source` relative to the run folder, copied there if it lies elsewhere: it may be gone when it is sent."""
        if source.absolute().is_relative_to(self.directory.absolute()):
            return str(source.absolute().relative_to(self.directory.absolute()))
        copy = self.directory / FOLDER / FILES / uuid.uuid4().hex
        if source.is_dir():
            shutil.copytree(source, copy)
        else:
            copy.mkdir(parents=True)
            copy = Path(shutil.copy(source, copy))
        return str(copy.relative_to(self.directory))

    def _with_real_ids(self, write: Write) -> Write:
        data: dict[str, Any] = json.loads(self._corrected(json.dumps(write.data)))
        if write.kind == "files":
            data["source"] = str(self.directory / write.data["source"])
        return replace(write, data=data, run_id=self.ids.get(write.run_id, write.run_id))

    def _corrected(self, text: str) -> str:
        for stand_in, real in self.ids.items():
            text = text.replace(stand_in, real).replace(f"[{stand_in[:8]}]", f"[{real[:8]}]")
        return text

    def _correct(self, file: Path) -> None:
        """Put the real ids into the summary and report of a run that began stages while the store was away."""
        if file.name in (paths.SUMMARY, paths.REPORT):
            before = file.read_text(encoding="utf-8")
            if (after := self._corrected(before)) != before:
                paths.write_text(file, after)

    def _state(self) -> dict[str, Any]:
        try:
            value: dict[str, Any] = json.loads((self.directory / FOLDER / STATE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            value = {"delivered": 0, "ids": {}}
        return value


def _ends_well(file: Path) -> bool:
    """Whether no line was cut off by the end of the process that wrote it."""
    with file.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - 1))
        return stream.read(1) in (b"", b"\n")
