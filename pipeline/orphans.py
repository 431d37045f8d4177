"""Runs whose process is gone without a word: a later run tells the store so."""

from __future__ import annotations

from pathlib import Path

from pipeline import sync
from pipeline.lifecycle import alive
from pipeline.seal import sealed_record
from pipeline.store import NOTE, TAG, Store

ORPHAN = "The process that ran this is gone: marked as orphan by a later run."


def reap_orphans(store: Store) -> list[str]:
    """Deliver what runs that ended without the store left for it; mark those, and their stages, as KILLED whose process
    is gone, and return their ids."""
    reaped = []
    running = "attributes.status = 'RUNNING' and tags.`{}kind` = '{}'"
    for run in [run for kind in ("run", "sweep") for run in store.search(running.format(TAG, kind), limit=1000)]:
        directory = run.data.tags.get(f"{TAG}directory")
        if directory and not sync.deliver_what_waits(store, Path(directory)):
            continue  # another process is just doing it, or the store refuses
        if alive(run) or store.run(run.info.run_id).info.status != "RUNNING":  # it may have ended without the store
            continue
        children = store.search(
            f"attributes.status = 'RUNNING' and tags.`mlflow.parentRunId` = '{run.info.run_id}' "
            f"and tags.`{TAG}kind` = 'stage'",
            limit=1000,
        )
        for orphan in (*children, run):
            if (record := sealed_record(store, orphan)) is not None:  # it had said all but that it ended
                store.finish(orphan.info.run_id, record.status, at=record.ended or None)
                continue
            store.finish(orphan.info.run_id, "KILLED", tags={"orphan": "true", NOTE: ORPHAN})
            reaped.append(orphan.info.run_id)
    return reaped
