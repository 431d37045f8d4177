"""Programs of all ranks, played through on memory that holds the numbers of experts: a reference by loops."""

from __future__ import annotations

import numpy as np

from stages.expert_map import EMPTY, ExpertMap
from stages.update.program import NONE, Program, Writes


class Ranks:
    """`slots`: `[L, P]`; `staging`: `[R, rows]`, -1 where nothing has arrived."""

    def __init__(self, held: ExpertMap, ranks: int, rows: int) -> None:
        self.slots = held.copy()
        self.staging = np.full((ranks, rows), EMPTY)
        self._per_rank = held.shape[1] // ranks

    def run(self, programs: list[Program], first: int = 0, last: int | None = None) -> None:
        """Batches `first` to `last` - 1 of the programs, one for each rank."""
        for batch in range(first, len(programs[0]) if last is None else last):
            for phase in range(int(programs[0].phases[batch])):
                self._exchange(programs, batch, phase)
            for rank, program in enumerate(programs):
                for chain in program.writes.of(batch).chains():
                    self._write(rank, chain)

    def _exchange(self, programs: list[Program], batch: int, phase: int) -> None:
        """Messages between two ranks have no names: the n-th that one sends is the n-th that the other takes."""
        messages: dict[tuple[int, int], list[int]] = {}
        for rank, program in enumerate(programs):
            sends = program.sends.of(batch)
            for n in np.flatnonzero(sends.phase == phase).tolist():
                own = int(sends.slot[n]) if sends.slot[n] != NONE else None
                value = self._slot(rank, int(sends.layer[n]), own) if own is not None else None
                if value is None:
                    value = int(self.staging[rank, sends.from_row[n]])
                assert value == sends.expert[n], f"rank {rank} sends expert {value} in place of {sends.expert[n]}"
                message = [int(sends.layer[n]), value, int(sends.to_row[n])]
                messages.setdefault((rank, int(sends.peer[n])), []).append(message)
        for rank, program in enumerate(programs):
            arrivals = program.arrivals.of(batch)
            for n in np.flatnonzero(arrivals.phase == phase).tolist():
                message = messages[int(arrivals.peer[n]), rank].pop(0)
                assert message == [arrivals.layer[n], arrivals.expert[n], arrivals.row[n]]
                self.staging[rank, arrivals.row[n]] = arrivals.expert[n]
        assert not any(messages.values()), "something was sent that nobody takes"

    def _slot(self, rank: int, layer: int, slot: int) -> int:
        return int(self.slots[layer, rank * self._per_rank + slot])

    def _write(self, rank: int, chain: Writes) -> None:
        """One chain, in place, as a lane does it."""
        held = self._source(rank, chain, len(chain) - 1) if chain.circular[-1] else None
        for n in range(len(chain)):
            value = held if held is not None and n == len(chain) - 1 else self._source(rank, chain, n)
            assert value == chain.expert[n], f"rank {rank} writes expert {value} in place of {chain.expert[n]}"
            self.slots[chain.layer[n], rank * self._per_rank + chain.slot[n]] = value

    def _source(self, rank: int, writes: Writes, n: int) -> int:
        if writes.from_slot[n] == NONE:
            return int(self.staging[rank, writes.from_row[n]])
        return self._slot(rank, int(writes.layer[n]), int(writes.from_slot[n]))
