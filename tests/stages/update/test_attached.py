"""The update on ranks that torchrun started on two hosts, both simulated on the loopback device."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from stages.checksum_table import read_checksums
from stages.errors import MoesaicError
from stages.execution import read_execution
from stages.holdings import read_holdings
from stages.synthetic import truth
from stages.update import attached
from stages.update.failures import Failure
from stages.update.progress_board import Phase, ProgressBoard, Report
from stages.update.seat import Seat
from stages.update.stores import Line
from tests.network.hosts import Host, hosts_or_loopback
from tests.stages.update import attached_script
from tests.stages.update.attached_script import CASE, FAILING, TIMEOUT_SECONDS
from tests.stages.update.cases import TENSORS, config_of, job_of
from tests.stages.update.processes import MARK, wait_until_gone

ROOT = Path(__file__).parents[3]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def torchrun(
    hosts: list[Host], ranks_per_host: int, mark: str, folder: Path, *mishap: str
) -> list[subprocess.Popen[str]]:
    """The script, started by torchrun on each of the hosts."""
    port = free_port()
    return [
        subprocess.Popen(
            host.command(
                *(sys.executable, "-m", "torch.distributed.run", f"--nnodes={len(hosts)}", f"--node-rank={number}"),
                *(f"--nproc-per-node={ranks_per_host}", f"--master-addr={hosts[0].address}", f"--master-port={port}"),
                f"--log-dir={folder / 'torchrun'}",
                *("-m", "tests.stages.update.attached_script", str(folder), *mishap),
            ),
            cwd=ROOT,
            env={**os.environ, MARK: mark, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number, host in enumerate(hosts)
    ]


def test_two_hosts_under_torchrun_and_a_link_that_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there are no namespaces, two hosts on the loopback device, and nothing is cut."""
    mark = f"{os.getpid()}-torchrun"
    with hosts_or_loopback(2) as hosts:
        can_cut = bool(hosts[1].switch)
        agents = torchrun(hosts, 2, mark, tmp_path, *["cut"] * can_cut)
        if can_cut:
            wait_for(tmp_path / "ready", agents)
            hosts[1].cut()
            began = time.monotonic()
            (tmp_path / "cut").touch()
        said = [agent.communicate(timeout=120)[0] for agent in agents]
        assert [agent.returncode for agent in agents] == [int(can_cut)] * 2, "\n".join(said)
        assert wait_until_gone(mark) == {}
    check_found(tmp_path, 4)
    if can_cut:
        assert time.monotonic() - began < 10 * TIMEOUT_SECONDS
        check_cut(tmp_path, "\n".join(said))


def wait_for(file: Path, agents: list[subprocess.Popen[str]]) -> None:
    deadline = time.monotonic() + 120
    while not file.exists():
        assert time.monotonic() < deadline
        assert [agent.poll() for agent in agents] == [None] * len(agents)
        time.sleep(0.05)


def check_cut(folder: Path, said: str) -> None:
    """Each side ends in time, and says what it misses; the same job goes on from there, here on one host."""
    found = json.loads((folder / "found.json").read_text())["cut"]
    told = re.match(
        r"ranks 2 and 3 (?:did not answer in time|are gone): last seen [a-z 0-9]+; slots 6-8 and 9-11 of each layer are lost with "
        r"them; ([12]) of (\d+) batches are committed on all ranks: the same command goes on from there\.$",
        found["error"],
    )
    assert told, found
    assert found["kind"] == "RanksLost"
    assert found["seconds"] < 5 * TIMEOUT_SECONDS
    for rank in (2, 3):
        assert f"Rank 0 is gone: rank {rank} ends (10.77.0.1:" in said, said
    holdings = read_holdings(folder / "cut_off" / "journal.json")
    assert holdings.lost_ranks == [2, 3]
    config = config_of(CASE, 4)
    config.update.journal = str(folder / "journal")
    assert "metrics" in attached_script.run(config, folder / "next")
    execution = read_execution(folder / "next" / "execution.json")
    assert (execution.first, execution.committed) == (int(told[1]), int(told[2]))
    check_slots(folder / "next", 4)


def test_four_hosts_of_which_one_dies(tmp_path: Path) -> None:
    """Its death is noticed by the others, whose own launchers end them; rank 0 still says what it was."""
    mark = f"{os.getpid()}-four"
    with hosts_or_loopback(4) as hosts:
        agents = torchrun(hosts, 1, mark, tmp_path, "killed")
        said = [agent.communicate(timeout=120)[0] for agent in agents]
        assert [agent.returncode for agent in agents] == [1] * 4, "\n".join(said)
        assert wait_until_gone(mark) == {}
    check_slots(tmp_path / "good", 4)
    found = json.loads((tmp_path / "found.json").read_text())["trouble"]
    assert found["kind"] == "RanksLost"
    assert re.match(
        r"rank 3 is gone: last seen [a-z 0-9]+; slots 9-11 of each layer are lost with it; 1 of \d+ batches are committed",
        found["error"],
    ), found


def check_slots(folder: Path, ranks: int) -> None:
    job = job_of(CASE, ranks)
    table = read_checksums(folder / "checksums.parquet")
    layer, slot = np.nonzero(job.new >= 0)
    assert np.array_equal(table.after[layer, slot], truth(TENSORS, CASE.seed, layer, job.new[layer, slot]))


def check_found(folder: Path, ranks: int) -> None:
    """Two updates went well, with one between them that a rank failed in and one that was refused."""
    found = json.loads((folder / "found.json").read_text())
    job = job_of(CASE, ranks)
    assert found["good"]["metrics"]["moved_bytes"] == job.received_bytes().sum()
    for name, first in (("good", 0), ("again", 1)):
        assert found[name]["tags"]["hosts"] == "2"
        check_slots(folder / name, ranks)
        execution = read_execution(folder / name / "execution.json")
        assert (execution.hosts, execution.first, execution.committed) == (2, first, execution.batches)
    failing = FAILING[ranks]
    assert re.match(
        rf"rank {failing} failed in batch 1: ValueError: no such weight; 1 of \d+ batches are committed on all ranks: the "
        r"same command goes on from there\.$",
        found["trouble"]["error"],
    ), found["trouble"]
    assert found["trouble"]["kind"] == "MoesaicError"
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


def other_rank(
    rank: int, seat: dict[str, str], folder: Path, *arguments: str, code: Path = ROOT
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.stages.update.attached_script", str(folder), *arguments],
        cwd=code,
        env={**seat, "RANK": str(rank)},
    )


def test_rank_0_without_torchrun(seat_of_two: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    follower = other_rank(1, seat_of_two, tmp_path)
    monkeypatch.setenv("RANK", "0")
    assert attached_script.main(tmp_path) == 7
    assert follower.wait(timeout=30) == 7
    check_found(tmp_path, 2)


def test_a_rank_with_other_code_is_refused(
    seat_of_two: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = tmp_path / "code"
    for package in ("stages", "tests"):
        shutil.copytree(ROOT / package, code / package, ignore=shutil.ignore_patterns("__pycache__"))
    with (code / "stages" / "update" / "moved.py").open("a") as module:
        module.write("# another version\n")
    follower = other_rank(1, seat_of_two, tmp_path, code=code)
    monkeypatch.setenv("RANK", "0")
    attached.lead()
    found = attached_script.run(config_of(CASE, 2), tmp_path / "refused")
    attached.release(2)
    assert follower.wait(timeout=30) == 2
    assert found["kind"] == "BadInput"
    assert found["error"] == ("Rank 1 runs other code of moesaic than rank 0: install the same version on every host.")
    assert not (tmp_path / "refused" / "journal.json").exists()
    assert not Path(tmp_path / "journal").exists()


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

    store = Line(dist.HashStore(), "here", 10)
    seats = [Seat(rank, 2, 0, 1, 2, "127.0.0.1", 1) for rank in range(2)]
    boards = [ProgressBoard(None, 2) for _ in seats]
    watches = [watch.Watch(0, seat, board, store) for seat, board in zip(seats, boards, strict=True)]
    boards[1].report(1, Report(Phase.update, 7))
    assert not watches[1].failed()
    assert store.get("beat/0/1") == "1 in layer 7"
    assert not watches[0].failed()
    monkeypatch.setattr(watch, "SILENCE_SECONDS", 0.0)
    assert not watches[1].failed()
    assert not watches[0].failed()
    assert watches[0].failed()
    assert watches[1].failed()
    assert Failure.from_text(store.get("failure/0")) == Failure(
        "rank 1 has not been heard for 0 s, last in layer 7", (1,)
    )


def test_alone_nothing_is_attached(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    assert not attached.is_attached()
    assert attached.is_leader()
    attached.lead()
    attached.release(3)
