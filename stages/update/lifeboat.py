"""Saves experts that wait in staging when a batch is not committed: no slot holds them any more.

What has been queued after such a batch goes on to the end, and takes over the rows of staging that its commit would have
set free. So the commit, which does nothing then, is followed by copies of what waits in these rows into memory of the
host; they are brought back before anything is sent again. Where everything is committed nothing is copied.
"""

from __future__ import annotations

import numpy as np
import torch

from stages.staging import Layout
from stages.update import kernels
from stages.update.program import Program
from stages.update.staging import Staging
from stages.update.tables import Addresses, copy_tables, upload_numbers
from stages.update.waiting import waiting


class Lifeboat:
    def __init__(self, program: Program, at: Addresses, staging: Staging) -> None:
        device, layout = staging.data.device, staging.layout
        self._staging, self._waiting = staging, waiting(program)
        self._boat = _boat(layout, self._waiting.places)
        places = Addresses(at.slots, at.nbytes, np.array(layout.starts(self._boat.rows)), at.strides)
        who, count = self._waiting, len(at.nbytes)
        self._stage = upload_numbers(np.repeat(who.stage, count), device)
        self._tables = copy_tables(
            np.repeat(who.commit, count), np.arange(len(who.row) * count + 1),
            places.of_rows(self._boat.data.data_ptr(), who.place).ravel(),
            at.of_rows(staging.data.data_ptr(), who.row).ravel(),
            np.tile(at.nbytes, len(who.row)), np.zeros(len(who.row) * count, dtype=np.int64),
            len(program), kernels.COPY_BYTES, device,
        )  # fmt: skip

    def warm_up(self, ballots: torch.Tensor) -> None:
        """Compile the kernel. `ballots`: all 0."""
        batches = np.unique(self._waiting.commit)
        if len(batches):
            self.save(int(batches[0]), ballots)

    def save(self, batch: int, ballots: torch.Tensor) -> None:
        """Queue on the current stream: what `batch` should commit is saved if its ballot says no, and if it is right."""
        tables = self._tables
        start, stop = tables.work.of_batch(batch)
        if start < stop:
            kernels.save_rows[(stop - start,)](
                tables.work.items, start, ballots, batch, self._stage, tables.target, tables.source, tables.nbytes,
                WORD=tables.word, CHUNK=kernels.COPY_BYTES, BLOCK=kernels.COPY_BLOCK, num_warps=8,
            )  # fmt: skip

    def bring_back(self, batch: int, queued: int) -> None:
        """`batch` was not committed, and it and what follows up to `queued` - 1 is over: put back what waits there."""
        who = self._waiting
        saved = (who.stage < batch) & (batch <= who.commit) & (who.commit < queued)
        for n in np.flatnonzero(saved).tolist():
            for k in range(len(self._staging.layout.nbytes)):
                self._staging.tensor(int(who.row[n]), k).copy_(self._boat.tensor(int(who.place[n]), k))


def _boat(layout: Layout, places: int) -> Staging:
    """In memory that the GPU reaches."""
    return Staging(layout, places, torch.empty(layout.total(places), dtype=torch.uint8, pin_memory=places > 0))
