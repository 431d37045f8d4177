"""Loads of a running SGLang server: its recorder is started, left to count for a while, stopped, and asked to dump.

The server was not recording before (starting throws away what it had recorded), and is not recording afterwards, whatever
happens meanwhile: also on Ctrl-C. It writes its dump into a folder of its own (SGLANG_EXPERT_DISTRIBUTION_RECORDER_DIR),
which must be readable here: no endpoint sends it.
"""

from __future__ import annotations

import os
import shutil
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stages.collect.config import CollectOptions
from stages.collect.words import listed
from stages.contract import Count, Progress
from stages.errors import BadInput, MoesaicError

START, STOP, DUMP, METRICS = (
    "/start_expert_distribution_record",
    "/stop_expert_distribution_record",
    "/dump_expert_distribution_record",
    "/metrics",
)
REQUESTS = "sglang:num_requests_total"
POLL_SECONDS = 0.5
KEY = "SGLANG_API_KEY"
"""Environment variable with the server's key, if it wants one: a key does not belong into a recorded config."""


def record(options: CollectOptions, folder: Path, progress: Progress) -> Path:
    """`folder`, with copies of the files that the server dumped. Raises `MoesaicError` where it does not do as it
    should."""
    assert options.path is not None
    theirs = Path(options.path).expanduser()
    if not theirs.is_dir():
        raise BadInput(
            f"collect.path={theirs} is no folder: it must be the one that the server dumps into "
            "(SGLANG_EXPERT_DISTRIBUTION_RECORDER_DIR, /tmp unless it is set), as this machine sees it."
        )
    server = Server(str(options.url).rstrip("/"), options.timeout)
    before = _files(theirs)
    with server.recording():
        _wait(server, options, progress)
    server.post(DUMP)
    new = _appeared(theirs, before, options.timeout)
    folder.mkdir(parents=True, exist_ok=True)
    for file in new:
        shutil.copyfile(file, folder / file.name)
    return folder


class Server:
    """A server, by its endpoints."""

    def __init__(self, url: str, timeout: float) -> None:
        self.url, self.timeout = url, timeout

    @contextmanager
    def recording(self) -> Iterator[None]:
        """The recorder runs inside the block and is stopped at its end, however that comes."""
        try:
            self.post(START)  # from here on it may record, even if the answer never arrives
            yield
            self.post(STOP)
        except BaseException:
            self._stop_anyway()
            raise

    def _stop_anyway(self) -> None:
        """Stop without hiding what went wrong before; an impatient second Ctrl-C does not prevent it."""
        for _ in range(2):
            try:
                self.post(STOP)
            except KeyboardInterrupt:
                continue
            except MoesaicError:
                pass
            return

    def post(self, endpoint: str) -> str:
        return self._ask(endpoint, b"")

    def get(self, endpoint: str) -> str:
        return self._ask(endpoint, None)

    def _ask(self, endpoint: str, data: bytes | None) -> str:
        """The answer's text. Raises `MoesaicError` that names endpoint and cause."""
        request = urllib.request.Request(self.url + endpoint, data=data, method="GET" if data is None else "POST")
        if key := os.environ.get(KEY):
            request.add_header("Authorization", f"Bearer {key}")
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                text: str = answer.read().decode("utf-8", "replace")
                return text
        except urllib.error.HTTPError as error:
            raise MoesaicError(
                f"{self.url}{endpoint} answered {_status(error)}.{_advice(endpoint, error.code)}"
            ) from error
        except urllib.error.URLError as error:
            if isinstance(error.reason, TimeoutError):
                raise MoesaicError(self._late(endpoint)) from error
            reason = getattr(error.reason, "strerror", None) or error.reason
            raise MoesaicError(f"{self.url}{endpoint} cannot be reached: {reason}.") from error
        except TimeoutError as error:
            raise MoesaicError(self._late(endpoint)) from error
        except (OSError, ValueError) as error:  # a connection that broke, an answer that is no HTTP
            raise MoesaicError(f"{self.url}{endpoint} broke off: {error or type(error).__name__}.") from error

    def _late(self, endpoint: str) -> str:
        return f"{self.url}{endpoint} did not answer within {self.timeout:g} s (collect.timeout)."


def _status(error: urllib.error.HTTPError) -> str:
    first = next(iter(error.read(2000).decode("utf-8", "replace").strip().splitlines()), "")[:200]
    return f"{error.code} {error.reason}" + (f": {first.rstrip('.')}" if first else "")


def _advice(endpoint: str, code: int) -> str:
    if endpoint == METRICS and code == 404:
        return " Start the server with --enable-metrics, or give collect.seconds instead of collect.requests."
    if code in (401, 403):
        return f" The server wants a key: set the environment variable {KEY}."
    if code == 500:
        return " Was the server started with --expert-distribution-recorder-mode?"
    return ""


def _wait(server: Server, options: CollectOptions, progress: Progress) -> None:
    """For so many requests more, or for so long: whichever comes first."""
    began, seconds, wanted = time.monotonic(), options.seconds, options.requests
    first = _finished(server) if wanted is not None else 0
    while True:
        passed, fraction, counts = time.monotonic() - began, 0.0, []
        if wanted is not None:
            done = _finished(server) - first
            fraction, counts = done / wanted, [Count("requests", done, wanted)]
        if seconds is not None:
            fraction, counts = max(fraction, passed / seconds), [*counts, Count("seconds", passed, seconds)]
        progress("the server records", min(1.0, fraction), *counts)
        if fraction >= 1:
            return
        time.sleep(POLL_SECONDS if seconds is None else min(POLL_SECONDS, max(0.0, seconds - passed)))


def _finished(server: Server) -> int:
    """The requests that the server has finished, over all its labels."""
    lines = [line for line in server.get(METRICS).splitlines() if line.startswith(REQUESTS)]
    if not lines:
        return 0  # the counter appears with the first request
    try:
        return int(sum(float(line.rsplit(" ", 1)[1]) for line in lines))
    except (ValueError, IndexError) as error:
        raise MoesaicError(f"{server.url}{METRICS} has a counter {REQUESTS} that is no number.") from error


def _files(folder: Path) -> dict[Path, tuple[int, int]]:
    """Size and time of the dumps that are there."""
    return {
        file: (file.stat().st_size, file.stat().st_mtime_ns)
        for file in folder.glob("expert_distribution_recorder_*.pt")
        if file.is_file()
    }


def _appeared(folder: Path, before: dict[Path, tuple[int, int]], timeout: float) -> list[Path]:
    """The dumps that are new, once none has changed for a moment and all are the archives that torch writes, to the
    end."""
    deadline = time.monotonic() + timeout
    last: dict[Path, tuple[int, int]] = {}
    while True:
        found = {file: state for file, state in _files(folder).items() if before.get(file) != state}
        if found and found == last and all(map(zipfile.is_zipfile, found)):
            return sorted(found)
        if time.monotonic() > deadline:
            what = (
                f"{listed(sorted(file.name for file in found))} not complete"
                if found
                else "no new expert_distribution_recorder_*.pt appeared"
            )
            raise MoesaicError(
                f"The server dumped, but {what} in collect.path={folder} within {timeout:g} s (collect.timeout): is it "
                "the server's SGLANG_EXPERT_DISTRIBUTION_RECORDER_DIR?"
            )
        last = found
        time.sleep(POLL_SECONDS / 2)
