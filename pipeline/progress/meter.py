"""What a stage says of its progress, with what only a clock can add: how fast it goes, and how long it still takes."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.headline import bytes_text
from stages.contract import Count

WINDOW_SECONDS = 10.0
"""A rate is that of the last seconds: what is slow now should be seen now."""
ENOUGH_SECONDS = 0.5
"""A rate over less than that is noise."""
MINUTE, HOUR = 60, 3600


@dataclass(frozen=True)
class Measured:
    """A `Count` with its rate a second; None while it cannot be told."""

    unit: str
    done: float
    total: float
    per_second: float | None = None

    @property
    def text(self) -> str:
        done, total = amounts(self.unit, self.done, self.total)
        return f"{done} of {total}"

    @property
    def rate(self) -> str:
        if self.unit == "seconds" or not self.per_second:
            return ""
        if self.unit == "bytes":
            return f"{bytes_text(float(f'{self.per_second:.3g}'))}/s"
        return (
            f"{self.per_second:,.3g} {self.unit}/s"
            if self.per_second < 1e3
            else f"{self.per_second:,.0f} {self.unit}/s"
        )


@dataclass(frozen=True)
class Reading:
    """How far a stage is: `fraction` of it is done, after `seconds`; `left` are the seconds that what it is doing still
    takes, if that can be told."""

    stage: str
    message: str
    fraction: float
    counts: tuple[Measured, ...] = ()
    seconds: float = 0.0
    left: float | None = None

    @property
    def text(self) -> str:
        """What is being done, with all numbers: `updating: 3 of 7 batches, 1.2 of 2.8 GB, 340 MB/s, 5 s left`."""
        numbers = [count.text for count in self.counts]
        numbers += [self.counts[-1].rate] if self.counts and self.counts[-1].rate else []
        numbers += [f"{duration(self.left)} left"] if self.left is not None else []
        return f"{self.message}: {', '.join(numbers)}" if numbers else self.message

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Reading:
        counts = tuple(Measured(**count) for count in value.pop("counts"))
        return cls(counts=counts, **value)


class Meter:
    """Reads the progress of one stage. Rates count from when the stage began to do what it is doing."""

    def __init__(self, stage: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._stage = stage
        self._clock = clock
        self._began = clock()
        self._message: str | None = None
        self._seen: deque[tuple[float, tuple[float, ...]]] = deque()

    def read(self, message: str, fraction: float, *counts: Count) -> Reading:
        now = self._clock()
        values = (*(count.done for count in counts), fraction)
        if message != self._message or (self._seen and len(self._seen[-1][1]) != len(values)):
            self._message = message
            self._seen.clear()
        self._seen.append((now, values))
        while len(self._seen) > 2 and now - self._seen[1][0] >= WINDOW_SECONDS:
            self._seen.popleft()
        rates = self._rates(now, values)
        measured = tuple(
            Measured(count.unit, count.done, count.total, rate) for count, rate in zip(counts, rates, strict=False)
        )
        return Reading(
            self._stage, message, fraction, measured, now - self._began, _left(measured, fraction, rates[-1])
        )

    def _rates(self, now: float, values: tuple[float, ...]) -> list[float | None]:
        began, first = self._seen[0]
        if now - began < ENOUGH_SECONDS:
            return [None] * len(values)
        return [(value - before) / (now - began) for value, before in zip(values, first, strict=True)]


def _left(counts: tuple[Measured, ...], fraction: float, speed: float | None) -> float | None:
    """By the count that takes longest; without counts by the fraction, as long as it moves."""
    if counts:
        waits = [(count.total - count.done) / count.per_second for count in counts if count.per_second]
        return max(0.0, *waits) if waits else None
    return (1 - fraction) / speed if speed else None


def amounts(unit: str, done: float, total: float) -> tuple[str, str]:
    """Both numbers as people read them, the second with its unit."""
    if unit == "bytes":
        return bytes_text(done), bytes_text(total)
    if unit == "seconds":
        return f"{done:.0f}", f"{total:.0f} s"
    return f"{done:,.0f}", f"{total:,.0f} {unit}"


def duration(seconds: float) -> str:
    """`8 s`, `2 min 05 s`, `3 h 20 min`."""
    whole = round(seconds)
    if whole < MINUTE:
        return f"{whole} s"
    if whole < HOUR:
        return f"{whole // MINUTE} min {whole % MINUTE:02} s"
    return f"{whole // HOUR} h {whole % HOUR // MINUTE:02} min"
