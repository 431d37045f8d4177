"""What all ranks of an update found together."""

from __future__ import annotations

import io
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from stages.functional import FunctionalProof, from_json
from stages.update.moved import EVENTS, SPLIT
from stages.update.progress_board import Phase

TIMED = (Phase.fill, Phase.checksum_before, Phase.link, Phase.compile, Phase.update, Phase.checksum_after)


@dataclass(frozen=True)
class Measured:
    """K tensors an expert, S = len(TIMED) spans.

    before, after:  uint64 [L, P, K]
    received, sent, staging, peak: int64 [R], bytes; peak: of all memory that the update took beside the weights
    seconds:        float64 [R], of the update
    spans:          float64 [R, S, 2], begin and end in seconds since the ranks met
    events:         float64 [R, M, 4], what (a number in EVENTS), of which layer or batch, begin, end; NaN where a rank
                    has fewer
    faults:         int64 [F, 8], rank and then the fields of each `Fault`
    held:           int64 [L, P], what every slot holds in the end
    steps:          int64 [4], the batches (or layers) run first and committed, of how many, and how often one was resent
    link_gb_per_s:  float64 [1]
    functional:     uint8, the functional proof as JSON
    """

    before: npt.NDArray[np.uint64]
    after: npt.NDArray[np.uint64]
    received: npt.NDArray[np.int64]
    sent: npt.NDArray[np.int64]
    staging: npt.NDArray[np.int64]
    peak: npt.NDArray[np.int64]
    seconds: npt.NDArray[np.float64]
    spans: npt.NDArray[np.float64]
    events: npt.NDArray[np.float64]
    faults: npt.NDArray[np.int64]
    held: npt.NDArray[np.int64]
    steps: npt.NDArray[np.int64]
    link_gb_per_s: npt.NDArray[np.float64]
    functional: npt.NDArray[np.uint8]

    def to_bytes(self) -> bytes:
        stream = io.BytesIO()
        np.savez(stream, **{field.name: getattr(self, field.name) for field in fields(self)})
        return stream.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> Measured:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return cls(**{field.name: arrays[field.name] for field in fields(cls)})

    def proof(self) -> FunctionalProof:
        return from_json(self.functional.tobytes())

    def checksum_seconds(self) -> float:
        """Of both passes, the slowest rank's."""
        passes = [TIMED.index(Phase.checksum_before), TIMED.index(Phase.checksum_after)]
        return float((self.spans[:, passes, 1] - self.spans[:, passes, 0]).sum(axis=1).max())

    def event_seconds(self, what: str) -> npt.NDArray[np.float64]:
        """[R, n]: how long each layer or batch took in `what`, n of them; 0 where a rank had nothing to do."""
        mine = self.events[:, :, 0] == EVENTS.index(what)
        count = int(self.events[:, :, 1][mine].max(initial=-1)) + 1
        out = np.zeros((len(self.events), count))
        rank, event = np.nonzero(mine)
        _, index, begin, end = self.events[rank, event].T
        np.add.at(out, (rank, index.astype(np.int64)), end - begin)
        return out

    def split(self) -> dict[str, float]:
        """Seconds that the rank which took longest spent in each part of the pipelined update; parts overlap."""
        slowest = int(self.seconds.argmax())
        return {what: float(self.event_seconds(what)[slowest].sum()) for what in SPLIT}

    @property
    def complete(self) -> bool:
        _, committed, total, _ = self.steps.tolist()
        return bool(committed == total)
