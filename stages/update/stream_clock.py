"""When streams of a GPU did what, by its own clock: measuring does not hold it up."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from stages.update.moved import Event


def stream(device: torch.device, *, urgent: bool = False) -> torch.cuda.Stream:
    """A stream of its own; what is queued on an urgent one starts first."""
    return torch.cuda.Stream(device, priority=-1 if urgent else 0)  # type: ignore[no-untyped-call]


class StreamClock:
    """`origin`: the host's clock when the ranks met. Works in streams that are being recorded too."""

    def __init__(self, origin: float) -> None:
        self._origin = origin
        self._marks: list[tuple[str, int, torch.cuda.Event, torch.cuda.Event]] = []
        self._found: list[Event] = []
        self._start: torch.cuda.Event | None = None
        self._started = 0.0

    def start(self) -> None:
        """The device is idle now."""
        self._started = time.perf_counter() - self._origin
        self._start = _mark()

    def restart(self) -> None:
        """What is queued from here on belongs to another attempt; the device is idle."""
        self._found += self._read()
        self._marks.clear()
        self.start()

    @contextmanager
    def __call__(self, what: str, batch: int) -> Iterator[None]:
        """What is queued on the current stream within the block is `what` of `batch`."""
        begin = _mark()
        yield
        self._marks.append((what, batch, begin, _mark()))

    def events(self) -> list[Event]:
        """Call when the device is synchronised."""
        return self._found + self._read()

    def _read(self) -> list[Event]:
        start = self._start
        if start is None:
            return []
        marks = [(what, batch, *(start.elapsed_time(e) / 1e3 for e in edges)) for what, batch, *edges in self._marks]
        return [(what, batch, self._started + begin, self._started + end) for what, batch, begin, end in marks]


def _mark() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True, external=True)  # type: ignore[no-untyped-call]
    event.record()
    return event
