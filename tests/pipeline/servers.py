"""Real servers for tests, on free loopback ports: PostgreSQL from Debian's binaries, and MLflow's tracking server."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock

DEBIAN = Path("/usr/lib/postgresql")
UNPRIVILEGED = ("postgres", "nobody")
FAST = ("fsync=off", "synchronous_commit=off", "full_page_writes=off", "max_connections=200")
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "PYTHONWARNINGS": "ignore",
}
SECONDS = 120


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def postgres_binaries() -> Path | None:
    """The folder with `initdb`: the newest that Debian installed, else that of the PATH."""
    found = sorted(DEBIAN.glob("*/bin/initdb"), key=lambda path: int(path.parts[-3].partition(".")[0]))
    beside = shutil.which("initdb")
    return found[-1].parent if found else Path(beside).parent if beside else None


@dataclass(frozen=True)
class Postgres:
    port: int
    password: str
    database: str = "postgres"
    user: str = "moesaic"

    @property
    def open_uri(self) -> str:
        """Without the password."""
        return f"postgresql+psycopg://{self.user}@127.0.0.1:{self.port}/{self.database}"

    @property
    def uri(self) -> str:
        return self.open_uri.replace("@", f":{self.password}@")

    @property
    def environment(self) -> dict[str, str]:
        """What libpq needs for the URI `postgresql://`."""
        return {
            "PGHOST": "127.0.0.1",
            "PGPORT": str(self.port),
            "PGUSER": self.user,
            "PGPASSWORD": self.password,
            "PGDATABASE": self.database,
        }


def _account() -> str | None:
    """Whom to run PostgreSQL as: it refuses root."""
    import pwd

    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in UNPRIVILEGED if name in names)


@contextmanager
def postgres() -> Iterator[Postgres]:
    """A fresh database cluster of this process, gone after the block."""
    binaries = postgres_binaries()
    assert binaries is not None
    server = Postgres(free_port(), secrets.token_hex(12))
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))  # pytest's own folders are closed to other accounts
    account = _account()
    try:
        (folder / "password").write_text(server.password)
        if account:
            for path in (folder, folder / "password"):
                shutil.chown(path, account)
        data = folder / "data"
        command = [f"{binaries}/initdb", "-D", str(data), "-U", server.user, f"--pwfile={folder / 'password'}"]
        command += ["--auth=scram-sha-256", "--no-sync", "--encoding=UTF8", "--locale=C"]
        subprocess.run(command, user=account, cwd=folder, check=True, capture_output=True)
        options = (*FAST, "listen_addresses=127.0.0.1", f"port={server.port}", f"unix_socket_directories={folder}")
        arguments = [part for option in options for part in ("-c", option)]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [f"{binaries}/postgres", "-D", str(data), *arguments], user=account, cwd=folder, stdout=log, stderr=log
            )
        try:
            ready = [f"{binaries}/pg_isready", "-q", "-h", "127.0.0.1", "-p", str(server.port)]
            _wait(lambda: subprocess.run(ready, check=False).returncode == 0, process, folder / "log")
            yield server
        finally:
            process.send_signal(signal.SIGINT)  # a fast shutdown: clients are cut off
            process.wait(SECONDS)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def postgres_told() -> Iterator[str]:
    with postgres() as server:
        yield json.dumps(asdict(server))


@contextmanager
def tracking_server(folder: Path, backend: str, name: str = "served", port: int = 0) -> Iterator[str]:
    """The URL of an MLflow server on `backend` that serves the artifacts, which lie in `folder` / `name`."""
    port = port or free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--artifacts-destination", str(folder / name), "--uvicorn-opts", "--log-level warning"]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    variables = {**inherited, **QUIET, "MLFLOW_BACKEND_STORE_URI": backend}
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(command, env=variables, stdout=log, stderr=log, start_new_session=True, cwd=folder)
    url = f"http://127.0.0.1:{port}"
    try:
        _wait(lambda: _answers(f"{url}/health"), process, folder / f"{name}.log")
        yield url
    finally:
        end_group(process)


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End a server and the workers that it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(20)
        except ProcessLookupError:
            break
        except subprocess.TimeoutExpired:
            continue
    process.wait(SECONDS)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return int(answer.status) == 200
    except OSError:
        return False


def _wait(ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + SECONDS
    while not ready():
        assert process.poll() is None, log.read_text(errors="replace")
        assert time.monotonic() < deadline, log.read_text(errors="replace")
        time.sleep(0.1)


@contextmanager
def shared(root: Path, name: str, start: Callable[[], AbstractContextManager[str]]) -> Iterator[str]:
    """What `start` yields, started by the first process to come and ended after the last one has gone."""
    told, users = root / f"{name}.json", root / f"{name}.users"
    with users.open("a") as stream:
        lock = FileLock(root / f"{name}.lock")
        with lock:
            fcntl.flock(stream, fcntl.LOCK_SH)
            started = None if told.exists() else start()
            if started is not None:
                told.write_text(json.dumps(started.__enter__()))
        try:
            yield str(json.loads(told.read_text()))
        finally:
            fcntl.flock(stream, fcntl.LOCK_UN)
            if started is not None:
                fcntl.flock(stream, fcntl.LOCK_EX)  # the others are done
                told.unlink()
                started.__exit__(None, None, None)
