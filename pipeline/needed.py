"""What of an experiment no kept run needs: decided from plain facts, before anything is touched."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

DAY_MS = 86_400_000
BAD_ENDS = ("FAILED", "KILLED")


@dataclass(frozen=True)
class Fact:
    """A run in the store. `kind`: run, stage or sweep; `deleted`: in MLflow, by a person; `ended`: in milliseconds, None
    while it runs; `uses`: the stage runs whose results it shows."""

    run_id: str
    kind: str
    deleted: bool
    status: str
    ended: int | None
    parent: str | None = None
    uses: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Verdict:
    """`remove`: the ids of the runs, of all kinds, that can go. `rescued`: of runs that were to go but have a stage that
    a kept run took from its checkpoint -> that kept run."""

    remove: list[str] = field(default_factory=list)
    rescued: dict[str, str] = field(default_factory=dict)


def not_needed(facts: Iterable[Fact], now: int, *, days: float | None = None, failed: bool = False) -> Verdict:
    """What can go: runs that a person deleted; with `days` also those that ended longer ago; with `failed` also those
    that did not end well. A run that goes takes its stages along, unless a kept run shows their results: then both stay.
    A sweep goes if it was deleted, or if it is old enough and no point of it stays."""
    known = {fact.run_id: fact for fact in facts}

    def to_go(fact: Fact) -> bool:
        if fact.status == "RUNNING" or (fact.ended is None and not fact.deleted):
            return False
        old = days is not None and fact.ended is not None and now - fact.ended > days * DAY_MS
        return fact.deleted or old or (failed and fact.kind == "run" and fact.status in BAD_ENDS)

    going = {fact.run_id for fact in known.values() if fact.kind == "run" and to_go(fact)}
    kept = [fact for fact in known.values() if fact.kind == "run" and fact.run_id not in going]
    used_by = {stage: fact.run_id for fact in kept for stage in fact.uses}
    rescued: dict[str, str] = {}
    for stage, user in used_by.items():
        parent = known[stage].parent if stage in known else None
        if parent in going:
            rescued[parent] = user
    going -= rescued.keys()
    alive = {point.parent for point in known.values() if point.kind == "run" and point.run_id not in going}
    for fact in known.values():
        # Of a run that is gone, or that was rescued for another of its stages, a stage stays while it is of use.
        homeless = fact.parent in going or fact.parent not in known
        if fact.kind == "stage" and fact.run_id not in used_by and fact.status != "RUNNING" and homeless:
            going.add(fact.run_id)
        if fact.kind == "sweep" and to_go(fact) and (fact.deleted or fact.run_id not in alive):
            going.add(fact.run_id)
    return Verdict(sorted(going), rescued)
