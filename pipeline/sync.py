"""`moesaic sync`, and what other runs do on their way: bring what waits in run folders into the store that lacked it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from pipeline.addresses import options_for
from pipeline.compared import compare_again
from pipeline.credentials import hidden
from pipeline.outbox import FOLDER, RUN_LOCK, WRITES, is_outage, waits
from pipeline.store import TAG, Store
from stages.errors import BadInput, MoesaicError, sentence_of

if TYPE_CHECKING:
    from mlflow.entities import Run

MOST_RUNS = 10_000


def sync(store: Store, what: str | None, say: Callable[[str], None]) -> None:
    """Deliver what waits in the folder `what`, in that of the run that `what` begins, or, without it, in the folders of
    all runs of the experiment that did not end."""
    if what is not None and Path(what).is_dir():
        folders = [Path(what)]
    elif what is not None and "/" in what:
        raise BadInput(f"{what} is no folder: name that of a run or a sweep, or the beginning of a run's id.")
    elif what is not None:
        folders = [_folder(store.pipeline_or_sweep(store.find(what)))]
    else:
        folders = unfinished(store)
    waiting = [folder for folder in with_points(folders) if waits(folder)]
    for folder in waiting:
        with claimed(folder) as free:
            if not free:
                raise BadInput(f"A run is writing into {folder}: it sends what waits there itself.")
            count = _deliver(store, folder, say)
        say(f"{folder}: {count} writes delivered; the store has all of it.")
    for folder in folders:
        compare_again(store, folder)
    if not waiting:
        say("Nothing waits: the store has all that the runs left.")


def unfinished(store: Store) -> list[Path]:
    """The folders, on this machine, of runs and sweeps that the store does not know the end of."""
    kinds = (f"tags.`{TAG}kind` = '{kind}'" for kind in ("run", "sweep"))
    ends = ("attributes.status = 'RUNNING'", f"tags.`{TAG}orphan` = 'true'")
    found = [run for kind in kinds for end in ends for run in store.search(f"{kind} and {end}", limit=MOST_RUNS)]
    return list(dict.fromkeys(_folder(run) for run in found))


def with_points(folders: Iterable[Path]) -> Iterator[Path]:
    """The folders, and after one of a sweep those of its points: they may have begun while the store was away."""
    for folder in folders:
        yield folder
        yield from sorted(state.parents[1] for state in folder.glob(f"*/{FOLDER}/{WRITES}"))


def deliver_what_waits(store: Store, folder: Path) -> bool:
    """Deliver what a run that is gone left; whether its folder now has nothing more to say. Says nothing itself, and
    fails only if this store refuses what it is given."""
    if not waits(folder):
        return True
    with claimed(folder) as free:
        if not free:
            return False
        try:
            _deliver(store, folder, lambda line: None)
        except MoesaicError:
            return False
    return True


def deliver_before(store: Store, folder: Path) -> None:
    """Before a run writes into `folder`: what an earlier one left there goes to the store, or nothing is touched."""
    if waits(folder):
        _deliver(store, folder, lambda line: None)


def say_what_waits(store: Store, folder: Path, say: Callable[[str], None]) -> None:
    """At the end of a run: a last try, and what to do about what still waits."""
    if store.outbox is not None and (cause := store.outbox.last_try()):
        options = options_for(store.uri, store.experiment)
        say(f"The tracking store is still away ({cause}). Once it is back: moesaic sync {folder}{options}")


def _deliver(store: Store, folder: Path, say: Callable[[str], None]) -> int:
    kept = store.kept_in(folder, say)
    assert kept.outbox is not None
    try:
        return kept.outbox.flush()
    except Exception as error:
        if not isinstance(error, OSError) and not is_outage(error):
            raise
        raise MoesaicError(
            f"What waits in {folder} cannot be delivered to the tracking store ({hidden(sentence_of(error))}): "
            "nothing is lost, call `moesaic sync` again when it can."
        ) from error


def _folder(run: Run) -> Path:
    return Path(run.data.tags.get(f"{TAG}directory", ""))


@contextmanager
def claimed(folder: Path) -> Iterator[bool]:
    """Whether no run is writing into `folder`, which is ours within the block."""
    lock = FileLock(folder / RUN_LOCK, blocking=False)
    try:
        lock.acquire()
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()
