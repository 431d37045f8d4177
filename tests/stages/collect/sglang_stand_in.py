"""A server that answers as SGLang's endpoints do, over real HTTP, and records made-up loads while requests come in."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np

from tests.stages.collect import engine_files as files

LAYERS, EXPERTS = 3, 4
ANSWERS = {
    "start": "Start recording the expert distribution.\n",
    "stop": "Stop recording the expert distribution.\n",
    "dump": "Dump expert distribution record.\n",
}


class StandIn(ThreadingHTTPServer):
    """`folder`: where it dumps. `log`: what it was asked, in order. The rest makes it misbehave.

    fails: endpoint -> status to answer with. hangs: endpoints that take `hang_seconds`. metrics: whether it has
    /metrics. silent_dump: dumps nothing. slow_dump: writes the dump in two parts, seconds apart. key: wants this one.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.log: list[str] = []
        self.recording = False
        self.rows: list[np.ndarray] = []
        self.requests = 100
        self.fails: dict[str, int] = {}
        self.hangs: set[str] = set()
        self.hang_seconds = 5.0
        self.metrics = True
        self.silent_dump = False
        self.slow_dump = 0.0
        self.key: str | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def serve_one(self) -> None:
        """A request of a user: it counts if the server records."""
        self.requests += 1
        if self.recording:
            rng = np.random.default_rng(self.requests)
            self.rows.append(rng.multinomial(30, [0.4, 0.3, 0.2, 0.1], LAYERS))

    def start(self) -> None:
        self.rows, self.recording = [], True

    def stop(self) -> None:
        self.recording = False

    def dump(self) -> None:
        if self.silent_dump:
            return
        ring = np.zeros((64, LAYERS, EXPERTS), dtype=int)
        ring[: len(self.rows)] = np.array(self.rows).reshape(-1, LAYERS, EXPERTS)
        path = self.folder / files.DUMP.format(time=time.time())
        files.write_stat(path, ring)
        if self.slow_dump:
            content = path.read_bytes()
            path.write_bytes(content[:100])
            Thread(target=lambda: (time.sleep(self.slow_dump), path.write_bytes(content)), daemon=True).start()
        self.rows = []


class Handler(BaseHTTPRequestHandler):
    server: StandIn

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        verb = self.path.removeprefix("/").partition("_")[0]
        self.server.log.append(verb)
        if self.server.key and self.headers.get("Authorization") != f"Bearer {self.server.key}":
            self._answer(401, '{"error": "Unauthorized"}')
        elif verb in self.server.hangs:
            time.sleep(self.server.hang_seconds)
            self._answer(200, ANSWERS[verb])
        elif verb in self.server.fails:
            self._answer(self.server.fails[verb], "Internal Server Error\nsecond line")
        elif verb in ANSWERS and self.path.endswith("_expert_distribution_record"):
            getattr(self.server, verb)()
            self._answer(200, ANSWERS[verb])
        else:
            self._answer(404, '{"detail": "Not Found"}')

    def do_GET(self) -> None:
        if self.path != "/metrics":
            self.do_POST()
        elif not self.server.metrics:
            self._answer(404, '{"detail": "Not Found"}')
        else:
            name = "sglang:num_requests_total"
            half = self.server.requests // 2
            self._answer(
                200,
                f"# HELP {name} Number of requests processed.\n# TYPE {name} counter\n"
                f'{name}{{model_name="m",dp_rank="0"}} {half}.0\n{name}{{dp_rank="1"}} {self.server.requests - half}.0\n',
            )

    def _answer(self, status: int, text: str) -> None:
        try:
            self.send_response(status)
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())
        except OSError:
            pass  # whoever asked is gone

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Nothing: `StandIn.log` has it."""


@contextmanager
def stand_in(folder: Path, per_second: float = 40) -> Iterator[StandIn]:
    """A server on this machine, with requests coming in all the time."""
    server = StandIn(folder)
    stopped = False

    def users() -> None:
        while not stopped:
            server.serve_one()
            time.sleep(1 / per_second)

    threads = [Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True), Thread(target=users)]
    for thread in threads:
        thread.start()
    try:
        yield server
    finally:
        stopped = True
        server.shutdown()
        server.server_close()
        for thread in threads:
            thread.join()
