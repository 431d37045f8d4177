"""Which processes carry a mark in their environment: what a test started, and all that this started in turn."""

from __future__ import annotations

import time
from pathlib import Path

MARK = "MOESAIC_TEST_MARK"


def alive(mark: str) -> dict[int, str]:
    """pid -> command line of the processes started with `MARK=mark`, but for those that have ended already."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes().split(b"\0")
            state = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()[0]
            if f"{MARK}={mark}".encode() in environment and state not in "ZX":
                found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:200]
        except (OSError, IndexError):
            continue
    return found


def wait_until_gone(mark: str, seconds: float = 10) -> dict[int, str]:
    """What is still alive when all have gone, or after `seconds`."""
    deadline = time.monotonic() + seconds
    while (left := alive(mark)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left
