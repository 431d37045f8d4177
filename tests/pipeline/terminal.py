"""A program in a real pseudo-terminal, whose screen a terminal emulator keeps, as a person would see it."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import termios
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pyte

ROWS, COLUMNS = 40, 100
QUIET = {"CI": None, "TERM": "xterm-256color", "LINES": None, "COLUMNS": None, "NO_COLOR": None}


class Terminal:
    """`frames`: what was on the screen each time after the program had written something."""

    def __init__(self, command: list[str], folder: Path, environment: Mapping[str, str] | None = None) -> None:
        kept = {name: value for name, value in os.environ.items() if name not in QUIET}
        variables = {**kept, **{n: v for n, v in QUIET.items() if v}, **(environment or {})}
        self._screen = pyte.Screen(COLUMNS, ROWS)
        self._stream = pyte.ByteStream(self._screen)
        self.frames: list[str] = []
        self.pid, self._file = pty.fork()
        if self.pid == 0:
            try:
                os.chdir(folder)
                signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored where a shell started the tests behind it
                os.execvpe(command[0], command, variables)
            finally:
                os._exit(127)
        fcntl.ioctl(self._file, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))

    @property
    def text(self) -> str:
        return "\n".join(line.rstrip() for line in self._screen.display).rstrip()

    def type(self, keys: str) -> None:
        os.write(self._file, keys.encode())

    def until(self, seen: Callable[[str], bool] | str, seconds: float = 60) -> str:
        """What the screen shows once `seen` is there."""
        there = seen if callable(seen) else lambda text: seen in text
        deadline = time.monotonic() + seconds
        while not there(self.text):
            assert time.monotonic() < deadline, f"not within {seconds} s:\n{self.text}"
            assert self._read(0.1), f"ended before:\n{self.text}"
        return self.text

    def end(self, seconds: float = 120) -> int:
        """The exit code, once the program has ended."""
        deadline = time.monotonic() + seconds
        while self._read(0.1):
            assert time.monotonic() < deadline, f"still runs:\n{self.text}"
        os.close(self._file)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def _read(self, seconds: float) -> bool:
        """Take in what the program wrote; False when it has ended."""
        if not select.select([self._file], [], [], seconds)[0]:
            return True
        try:
            data = os.read(self._file, 65536)
        except OSError:  # Linux says so when the other end has closed
            return False
        self._stream.feed(data)
        if data:
            self.frames.append(self.text)
        return bool(data)
