"""What one rank of an executor did."""

from __future__ import annotations

from dataclasses import dataclass, field

from stages.expert_map import ExpertMap
from stages.update.lane import Fault

EVENTS = ("layer", "pack", "network", "hash", "wait", "commit")
"""What is timed: a layer of the reference executor, and what the pipelined one does with a batch."""
SPLIT = EVENTS[1:]

Event = tuple[str, int, float, float]
"""What, of which layer or batch, begin and end in seconds since the ranks met."""


@dataclass(frozen=True)
class Moved:
    """`seconds`: from a barrier to this rank's last commit, device-synchronised.

    first, committed: the batches (layers, for the reference executor) from `first` on were run here, and `committed` of
    all `batches` are done; faults: what arrived wrong in the batch that the update stopped at; resent: how often a
    batch was sent again. held: `[L, P]`, what every slot of all ranks holds now.
    """

    seconds: float
    events: list[Event]
    received_bytes: int
    sent_bytes: int
    staging_bytes: int
    first: int
    committed: int
    batches: int
    held: ExpertMap
    faults: list[Fault] = field(default_factory=list)
    resent: int = 0
    began: float = 0.0
