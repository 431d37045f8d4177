"""What a sweep's points came to, left in its folder and in the store: at its end, or once the store has its points."""

from __future__ import annotations

from pathlib import Path

from pipeline import comparison
from pipeline.points import read_parent
from pipeline.seal import SealedStore
from pipeline.store import NOTE, TAG, Store
from pipeline.story import padded


def leave_comparison(store: Store, run_id: str, directory: Path, found: comparison.Comparison, cause: str) -> None:
    """Put it beside the points in `directory`, and on the sweep's run."""
    for file in comparison.write(found, directory):
        store.artifact(run_id, file)
    story = f"**{cause}**\n\n" if cause else ""
    note = padded(story + found.note(store.experiment_id))
    store.log(run_id, metrics=found.metrics(), tags={NOTE: note})


def compare_again(store: Store, directory: Path) -> None:
    """After a sweep whose points came into the store later: the comparison that it could not make."""
    parent = read_parent(directory)
    if parent is not None and not (directory / comparison.TABLE).exists():
        run_id = parent["run_id"]
        sealed = SealedStore.unseen(store.uri, store.experiment, store.experiment_id)
        found = comparison.compare(comparison.points_of(store, run_id))
        with sealed.reopened(run_id):
            cause = store.run(run_id).data.tags.get(f"{TAG}cause", "")
            leave_comparison(sealed, run_id, directory, found, cause)
