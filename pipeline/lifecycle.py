"""Runs that end badly: a heartbeat while one lives, signals that end it, and the reaper of those that are gone."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from pipeline.store import TAG, Store
from stages.errors import sentence_of

if TYPE_CHECKING:
    from mlflow.entities import Run

MISSED_BEATS = 8
HANGS_SECONDS = 5  # a beat may wait for a store that does not answer
LATER_SECONDS = 0.1
ENDS = (signal.SIGTERM, signal.SIGHUP)


class Terminated(BaseException):
    """SIGTERM or SIGHUP, `number`, arrived. Not an Exception, so that nothing swallows it."""

    def __init__(self, number: int) -> None:
        super().__init__(f"Ended by {signal.Signals(number).name}: the same command continues after the last stage.")
        self.number = number


@contextmanager
def ending_raises() -> Iterator[None]:
    """Within the block SIGTERM and SIGHUP raise `Terminated` in the main thread, as Ctrl-C does `KeyboardInterrupt`, but
    none of them while torch is being imported: they wait until it is."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handler(number: int, frame: FrameType | None) -> None:
        if _importing_torch():
            _again_later(number)
        elif number == signal.SIGINT:
            raise KeyboardInterrupt
        else:
            raise Terminated(number)

    def unraisable(lost: Any) -> None:
        """Of a signal that arrived where Python ignores exceptions, like in a `__del__`: it would be lost."""
        if isinstance(lost.exc_value, Terminated | KeyboardInterrupt):
            _again_later(getattr(lost.exc_value, "number", signal.SIGINT))
        else:
            ignored(lost)

    # Where Ctrl-C is ignored, or somebody else's, it stays so.
    ctrl_c = (signal.SIGINT,) if signal.getsignal(signal.SIGINT) is signal.default_int_handler else ()
    before = {number: signal.signal(number, handler) for number in (*ENDS, *ctrl_c)}
    ignored, sys.unraisablehook = sys.unraisablehook, unraisable
    try:
        yield
    finally:
        sys.unraisablehook = ignored
        for number, earlier in before.items():
            signal.signal(number, earlier)


def _again_later(number: int) -> None:
    later = threading.Timer(LATER_SECONDS, signal.raise_signal, [number])
    later.daemon = True
    later.start()


def cause_of(error: BaseException) -> str:
    """One sentence for what ended a run or a stage."""
    return str(error) if isinstance(error, Terminated) else sentence_of(error)


def _importing_torch() -> bool:
    """Its C++ imports Python modules too: an exception there is lost, or aborts the process."""
    return bool(getattr(getattr(sys.modules.get("torch"), "__spec__", None), "_initializing", False))


def ended_by(error: BaseException) -> BaseException | None:
    """The Ctrl-C or the end of the process in whose wake `error` was raised: a library that cleans up may raise
    something else."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, Terminated | KeyboardInterrupt):
            return seen
        seen = seen.__cause__ or seen.__context__
    return None


@contextmanager
def signals_held() -> Iterator[None]:
    """Within the block Ctrl-C or SIGTERM waits: what is being closed would stay half closed.

    Not by a mask: that is one thread's own, and a signal which any other thread takes is handled by the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    held = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, lambda number, frame: came.append(number)) for number in held}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for late in dict.fromkeys(came):
            signal.raise_signal(late)


def birth_tags(heartbeat_seconds: float) -> dict[str, str]:
    """Tags that tell later runs who this process is and until when to believe that it lives."""
    pid = os.getpid()
    return {
        "host": _host(),
        "pid": str(pid),
        "pid_started": _process_start(pid) or "",
        "heartbeat": f"{time.time():.0f}",
        "heartbeat_seconds": f"{heartbeat_seconds:g}",
    }


@contextmanager
def heartbeat(store: Store, run_id: str, seconds: float, progress: Callable[[], str] = lambda: "") -> Iterator[None]:
    """Renew the heartbeat tag of a run from a thread while the block goes on, and say what `progress` it makes."""
    done = threading.Event()

    def beat() -> None:
        while not done.wait(seconds):
            try:
                told = progress()
                store.tag(run_id, {"heartbeat": f"{time.time():.0f}", **({"progress": told} if told else {})})
            except Exception:  # a beat that is missed is not worth a run, whatever the store says
                continue

    thread = threading.Thread(target=beat, daemon=True, name="moesaic-heartbeat")
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(HANGS_SECONDS)


def alive(run: Run) -> bool:
    """Does the process of a RUNNING run live? A pid is trusted on its own host alone; elsewhere the heartbeat counts."""
    tags = run.data.tags
    if tags.get(f"{TAG}host") == _host():
        started = _process_start(int(tags.get(f"{TAG}pid", "0")))
        return started is not None and started == tags.get(f"{TAG}pid_started")
    beat = float(tags.get(f"{TAG}heartbeat", "0"))
    return time.time() - beat < MISSED_BEATS * float(tags.get(f"{TAG}heartbeat_seconds", "15"))


def _host() -> str:
    """This machine since its last boot, and the namespace that its pids are counted in."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        namespace = str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        boot = namespace = ""
    return f"{socket.gethostname()} {boot} {namespace}".strip()


def _process_start(pid: int) -> str | None:
    """When the process started, in clock ticks since boot; None if there is none. A zombie counts as gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields[19]
