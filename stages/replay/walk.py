"""A trace walked window by window under a rule that says when to place anew."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stages.balance import balancedness_per_layer, gpu_load
from stages.expert_map import ExpertMap
from stages.load import LoadStats
from stages.replay.config import ReplayOptions
from stages.replay.seconds import Floats, Move, Speed, move
from stages.solvers.fit import fitted_load
from stages.solvers.solver import Solver

STAYS = Move(0, 0, 0.0)


@dataclass(frozen=True)
class Walk:
    """What a rule made of the trace, [T] each: balancedness of each window, whether it began with a new placement, the
    moved slots, bytes and seconds of that, and the seconds of the window itself. `cut`: the clock ended some search."""

    rule: str
    balancedness: Floats
    placed: npt.NDArray[np.bool_]
    moved_slots: npt.NDArray[np.int64]
    moved_bytes: npt.NDArray[np.int64]
    update_seconds: Floats
    window_seconds: Floats
    cut: bool

    @property
    def seconds(self) -> Floats:
        """[T]: of the window and of the move before it."""
        return self.window_seconds + self.update_seconds


@dataclass(frozen=True)
class Trace:
    """What is walked, and with what."""

    load: LoadStats
    solver: Solver
    speed: Speed
    tensors: int
    options: ReplayOptions

    def walk(self, rule: str, progress: Callable[[int], None]) -> Walk:
        """Serve every window, after placing anew where `rule` says so."""
        rows: list[tuple[float, bool, Move, float]] = []
        cut = False
        current = self.solver.current
        ranks = self.solver.topology.ranks
        for window in range(self.load.windows):
            step = STAYS
            if window and self._asks(rule, window, rows[-1][0]):
                found = self.solver.solve(fitted_load(self._seen(window), self.solver.options), current)
                new, cut = found.map, cut or found.cut
                step = self._move(current, new)
                if rule == "pays_back" and not self._pays_back(window, current, new, step):
                    step, new = STAYS, current
                current = new
            load = self.load.logical_count[window].astype(np.float64)
            balance = float(balancedness_per_layer(gpu_load(load, current, ranks)).mean())
            rows.append((balance, step is not STAYS, step, self.speed.window_seconds(load, current, ranks)))
            progress(window + 1)
        balances, placed, steps, seconds = zip(*rows, strict=True)
        return Walk(
            rule,
            np.array(balances),
            np.array(placed),
            np.array([step.slots for step in steps]),
            np.array([step.moved_bytes for step in steps]),
            np.array([step.seconds for step in steps]),
            np.array(seconds),
            cut,
        )

    def _asks(self, rule: str, window: int, last_balance: float) -> bool:
        """Whether a placement is computed before `window`; windows count from 0, and the first is never one."""
        if rule == "never":
            return False
        if rule == "once":
            return window == min(self.options.history or 1, self.load.windows - 1)
        if rule == "every":
            return window % self.options.every == 0
        if rule == "threshold":
            return last_balance < self.options.threshold
        return True

    def _seen(self, window: int) -> npt.NDArray[np.int64]:
        """[T', L, E]: the windows before `window` that count."""
        first = 0 if self.options.history is None else max(0, window - self.options.history)
        return self.load.logical_count[first:window]

    def _move(self, old: ExpertMap, new: ExpertMap) -> Move:
        return move(old, new, self.solver.topology, self.solver.expert_bytes, self.tensors)

    def _pays_back(self, window: int, current: ExpertMap, new: ExpertMap, step: Move) -> bool:
        """Whether `new` would have saved more in the windows seen, over as many as it may take, than the move takes."""
        ranks = self.solver.topology.ranks
        seen = self._seen(window).astype(np.float64)
        saved = [
            self.speed.window_seconds(load, current, ranks) - self.speed.window_seconds(load, new, ranks)
            for load in seen
        ]
        return float(np.mean(saved)) * self.options.payback_windows > step.seconds
