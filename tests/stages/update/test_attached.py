"""The update on ranks that torchrun started on two hosts, both simulated on the loopback device."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from stages.checksum_table import read_checksums
from stages.errors import MoesaicError
from stages.execution import read_execution
from stages.synthetic import truth
from stages.update import attached
from stages.update.progress_board import Phase, ProgressBoard
from stages.update.seat import Seat
from tests.stages.update import attached_script
from tests.stages.update.attached_script import CASE, FAILING
from tests.stages.update.cases import TENSORS, config_of, job_of
from tests.stages.update.processes import MARK, wait_until_gone

ROOT = Path(__file__).parents[3]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def test_two_hosts_under_torchrun(tmp_path: Path) -> None:
    mark, port = f"{os.getpid()}-torchrun", free_port()
    hosts = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--nnodes=2", f"--node-rank={host}"),
                *("--nproc-per-node=2", "--master-addr=127.0.0.1", f"--master-port={port}"),
                *("-m", "tests.stages.update.attached_script", str(tmp_path)),
            ],
            cwd=ROOT,
            env={**os.environ, MARK: mark, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for host in range(2)
    ]
    said = [host.communicate(timeout=120)[0] for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], "\n".join(said)
    assert wait_until_gone(mark) == {}
    check_found(tmp_path, 4)


def check_found(folder: Path, ranks: int) -> None:
    """Two updates went well, with one between them that a rank failed in and one that was refused."""
    found = json.loads((folder / "found.json").read_text())
    job = job_of(CASE, ranks)
    for name in ("good", "again"):
        assert found[name]["metrics"]["moved_bytes"] == job.received_bytes().sum()
        assert found[name]["tags"]["hosts"] == "2"
        table = read_checksums(folder / name / "checksums.parquet")
        layer, slot = np.nonzero(job.new >= 0)
        assert np.array_equal(table.after[layer, slot], truth(TENSORS, CASE.seed, layer, job.new[layer, slot]))
        assert read_execution(folder / name / "execution.json").hosts == 2
    failing = FAILING[ranks]
    assert found["trouble"] == {
        "error": f"rank {failing} failed in layer 1: ValueError: no such weight",
        "kind": "MoesaicError",
    }
    assert found["other config"]["kind"] == "BadInput"
    assert "has another config of update, model, topology or seed" in found["other config"]["error"]


@pytest.fixture
def seat_of_two(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment of two ranks that no torchrun looks after; without a rank."""
    monkeypatch.setattr(attached, "_sessions", [])
    seat = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    network = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo", "NCCL_NVLS_ENABLE": "0"}
    for name, value in (seat | network).items():
        monkeypatch.setenv(name, value)
    return {**os.environ, **seat}


def other_rank(rank: int, seat: dict[str, str], folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.stages.update.attached_script", str(folder), *arguments],
        cwd=ROOT,
        env={**seat, "RANK": str(rank)},
    )


def test_rank_0_without_torchrun(seat_of_two: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    follower = other_rank(1, seat_of_two, tmp_path)
    monkeypatch.setenv("RANK", "0")
    assert attached_script.main(tmp_path) == 0
    assert follower.wait(timeout=30) == 7
    check_found(tmp_path, 2)


def test_a_follower_ends_with_rank_0(
    seat_of_two: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leader = other_rank(0, seat_of_two, tmp_path, "die")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(MoesaicError, match=r"^Rank 0 is gone: rank 1 ends"):
        attached.follow(config_of(CASE, 2))
    assert leader.wait(timeout=30) == -9


def test_watch_tells_what_ranks_do_and_who_fell_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch.distributed as dist

    from stages.update import watch

    store = dist.HashStore()
    seats = [Seat(rank, 2, 0, 1, 2, "127.0.0.1", 1) for rank in range(2)]
    boards = [ProgressBoard(None, 2) for _ in seats]
    watches = [watch.Watch(0, seat, board, store) for seat, board in zip(seats, boards, strict=True)]
    boards[1].report(1, Phase.update, 7)
    assert not watches[1].failed()
    assert store.get("beat/0/1") == b"1 in layer 7"
    assert not watches[0].failed()
    monkeypatch.setattr(watch, "SILENCE_SECONDS", 0.0)
    assert not watches[1].failed()
    assert not watches[0].failed()
    assert watches[0].failed()
    assert watches[1].failed()
    assert store.get("failure/0") == b"rank 1 has not been heard for 0 s, last in layer 7"


def test_alone_nothing_is_attached(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    assert not attached.is_attached()
    assert attached.is_leader()
    attached.lead()
    attached.release(3)
