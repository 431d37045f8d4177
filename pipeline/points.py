"""A point of a sweep, in whatever process it runs: what it is, whether it was done before, and what it shares.

What points have to know lies in the sweep's folder, which every process and host of the sweep sees.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pipeline.code_digest import code_digest
from pipeline.declaration import StageSpec
from pipeline.keys import cacheable
from pipeline.store import TAG, Store
from pipeline.summary import Summary, read_summary
from stages import paths
from stages.contract import Content

PARENT = "sweep.json"
LOCKS = ".locks"
GOOD = ("done", "verified")


@dataclass(frozen=True)
class Point:
    """Point `number` of the sweep in the folder `sweep`, whose parent run is `parent` (None: it could not be made), in
    the experiment `experiment_id`, which is known even where the store is away. `continues`: the sweep was interrupted
    before, and points that are done are not run again."""

    sweep: Path
    number: int
    parent: str | None = None
    continues: bool = False
    experiment_id: str | None = None

    @classmethod
    def of(cls, sweep: Path, number: int) -> Point:
        value = read_parent(sweep)
        if value is None:
            return cls(sweep, number)
        return cls(sweep, number, value["run_id"], bool(value.get("continues")), value.get("experiment_id"))

    def tags(self) -> dict[str, str]:
        return {"sweep": str(self.sweep), "point": str(self.number)}

    def done_before(self, store: Store, directory: Path, identity: str) -> Summary | None:
        """What the point came to when the sweep was begun before, if it was the same and came to a good end."""
        if not self.continues:
            return None
        try:
            summary = read_summary(directory / paths.SUMMARY)
        except (OSError, ValueError, TypeError):
            return None
        if summary.status not in GOOD or summary.run_id is None:
            return None
        with suppress(Exception):  # a run that was deleted is none
            run = store.run(summary.run_id)
            tags = run.data.tags
            if (
                run.info.status == "FINISHED"
                and tags.get(f"{TAG}identity") == identity
                and tags.get("mlflow.parentRunId") == self.parent
            ):
                return summary
        return None

    @contextmanager
    def alone_with(self, key: str, waiting: Callable[[], None]) -> Iterator[None]:
        """Within the block no other point of the sweep makes what has the checkpoint `key`: it is made once. `waiting`
        is called if another one does. Where the file system has no locks, it may be made twice, which is only slower."""
        lock = FileLock(self.sweep / LOCKS / f"{key[:32]}.lock")
        try:
            (self.sweep / LOCKS).mkdir(exist_ok=True)
            lock.acquire(blocking=False)
        except Timeout:
            waiting()
            lock.acquire(poll_interval=0.2)
        except (OSError, NotImplementedError):
            yield
            return
        try:
            yield
        finally:
            lock.release()


def identity(specs: Sequence[StageSpec], configs: Mapping[str, Any]) -> str:
    """What makes a point the same as one before: its stages, their code and config, and the files they read."""
    facts = [
        [spec.name, code_digest(spec.target), asdict(configs[spec.name]), _files_of(configs[spec.name])]
        for spec in specs
    ]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def _files_of(config: Any) -> list[Any]:
    files = config.external_files() if hasattr(config, "external_files") and cacheable(config) else {}
    return [_seen(file) for _, file in sorted(files.items())]


def _seen(file: Path | Content) -> Any:
    """A file by what its folder says of it: to read all of it for each point would take long."""
    if not isinstance(file, str | Path):
        return file.sha256()
    found = [Path(file), *sorted(Path(file).rglob("*"))] if Path(file).is_dir() else [Path(file)]
    with suppress(OSError):
        return [[str(one), one.stat().st_size, one.stat().st_mtime_ns] for one in found]
    return str(file)


def write_parent(sweep: Path, run_id: str, experiment_id: str, *, continues: bool) -> None:
    """Tell the points of the sweep what they are under."""
    paths.write_json(sweep / PARENT, {"run_id": run_id, "experiment_id": experiment_id, "continues": continues})


def read_parent(folder: Path) -> dict[str, Any] | None:
    """What the sweep in `folder` told its points; None if there is none, or its run could not be made."""
    try:
        value: dict[str, Any] = json.loads((folder / PARENT).read_text(encoding="utf-8"))
    except OSError:
        return None
    return value


def forget_locks(sweep: Path) -> None:
    with suppress(OSError):
        for file in (sweep / LOCKS).iterdir():
            file.unlink()
        (sweep / LOCKS).rmdir()
