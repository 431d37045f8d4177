"""Loads of a server: it records for as long as it should, and is left as it was, whatever goes wrong."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from stages.contract import StageResult
from stages.errors import BadInput, MoesaicError
from stages.load import LoadStats
from tests.stages.collect import engine_files as files
from tests.stages.collect.helpers import model, run
from tests.stages.collect.sglang_stand_in import StandIn, stand_in


@pytest.fixture
def server(tmp_path: Path) -> Iterator[StandIn]:
    (tmp_path / "dumps").mkdir()
    with stand_in(tmp_path / "dumps") as serving:
        yield serving


def read(server: StandIn, **options: object) -> tuple[StageResult, LoadStats]:
    given = {"seconds": 0.4, "timeout": 1.0, "url": server.url, "path": str(server.folder), **options}
    return run(server.folder.parent, model(), source="sglang_server", **given)  # type: ignore[arg-type]


def test_it_records_for_a_while_and_fetches_what_was_dumped(server: StandIn) -> None:
    old = server.folder / files.DUMP.format(time="1.5")
    files.write_stat(old, np.ones((4, 3, 4)))
    result, load = read(server)
    assert server.log == ["start", "stop", "dump"]
    assert not server.recording
    assert 2 <= load.windows <= 40
    assert (load.logical_count.sum(axis=2) == 30).all()
    fetched = list((server.folder.parent / "collect" / "dump").iterdir())
    assert len(fetched) == 1
    assert fetched[0].name != old.name
    assert old.exists()
    assert len(list(server.folder.iterdir())) == 2
    assert f"dump/{fetched[0].name}" in result.files
    assert result.tags["source"] == "sglang_server"
    assert result.datasets[0].source == server.url


def test_it_waits_for_so_many_requests(server: StandIn) -> None:
    _, load = read(server, seconds=None, requests=20)
    assert load.windows >= 20
    before = time.monotonic()
    read(server, seconds=0.3, requests=10**6)
    assert time.monotonic() - before < 3
    assert server.log == ["start", "stop", "dump"] * 2


def test_a_dump_that_takes_its_time_is_read_whole(server: StandIn) -> None:
    server.slow_dump = 0.3
    assert read(server, timeout=5.0)[1].windows >= 2


@pytest.mark.parametrize(
    ("endpoint", "asked"),
    [("start", ["start", "stop"]), ("stop", ["start", "stop", "stop"]), ("dump", ["start", "stop", "dump"])],
)
def test_http_errors_are_named_and_the_recorder_is_stopped(server: StandIn, endpoint: str, asked: list[str]) -> None:
    server.fails = {endpoint: 500}
    with pytest.raises(MoesaicError) as error:
        read(server)
    assert str(error.value).startswith(
        f"{server.url}/{endpoint}_expert_distribution_record answered 500 Internal Server Error: Internal Server Error."
    )
    assert "--expert-distribution-recorder-mode" in str(error.value)
    assert "second line" not in str(error.value)
    assert error.value.exit_code == 1
    assert server.log == asked


@pytest.mark.parametrize("endpoint", ["start", "dump"])
def test_time_outs_are_named(server: StandIn, endpoint: str) -> None:
    server.hangs = {endpoint}
    with pytest.raises(MoesaicError, match=rf"/{endpoint}_expert.* did not answer within 0.5 s \(collect.timeout\)"):
        read(server, timeout=0.5)
    assert server.log[-1] == ("stop" if endpoint == "start" else "dump")
    assert not server.recording


def test_metrics_that_are_not_there(server: StandIn) -> None:
    server.metrics = False
    with pytest.raises(MoesaicError, match=r"/metrics answered 404 Not Found.*Start the server with --enable-metrics"):
        read(server, seconds=None, requests=3)
    assert server.log == ["start", "stop"]


def test_a_dump_that_never_comes(server: StandIn) -> None:
    server.silent_dump = True
    with pytest.raises(MoesaicError, match=r"no new expert_distribution_recorder_\*.pt appeared in collect.path="):
        read(server, timeout=0.4)
    assert not server.recording


def test_a_key_comes_from_the_environment(server: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    server.key = "secret"
    with pytest.raises(MoesaicError, match=r"answered 401 Unauthorized.*set the environment variable SGLANG_API_KEY"):
        read(server)
    monkeypatch.setenv("SGLANG_API_KEY", "secret")
    assert read(server)[1].windows


def test_servers_that_are_none(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {"source": "sglang_server", "url": f"http://127.0.0.1:{port}/", "seconds": 1.0}
    with pytest.raises(MoesaicError, match=rf"^http://127.0.0.1:{port}/start_.* cannot be reached: Connection refused"):
        run(tmp_path, model(), path=str(tmp_path), **options)
    with pytest.raises(BadInput, match="is no folder: it must be the one that the server dumps into"):
        run(tmp_path, model(), path=str(tmp_path / "nowhere"), **options)
    late = pytest.raises(MoesaicError, match=r"did not answer within 0\.3 s")
    with socket.create_server(("127.0.0.1", port)), late:  # which takes the connection and says nothing
        run(tmp_path, model(), path=str(tmp_path), timeout=0.3, **options)


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_whoever_ends_the_run_leaves_a_server_that_does_not_record(
    server: StandIn, store_file: Path, sign: signal.Signals
) -> None:
    """The real command in a process of its own, as a user ends it."""
    overrides = [
        "collect=sglang_server", f"collect.url={server.url}", f"collect.path={server.folder}", "collect.seconds=600",
        "model=custom", "model.layers=3", "model.experts=4", "run.last=collect",
    ]  # fmt: skip
    code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += "from pipeline.cli import main; sys.exit(main(['run', *sys.argv[1:]]))"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *overrides], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not server.recording:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(sign)
    _, errors = process.communicate(timeout=60)
    assert process.returncode not in (0, None)
    assert server.log == ["start", "stop"], errors
    assert not server.recording
