"""Which of several ranks a process is, and where it meets the others."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class LocalSeat:
    """A rank that the pipeline starts itself. The ranks meet at `port` of the loopback device; `board` is the file in
    which each says what it does."""

    rank: int
    ranks: int
    backend: str
    port: int
    timeout_seconds: float
    board: Path


@dataclass(frozen=True)
class Seat:
    """A rank that torchrun or Slurm started. `local_*` count on this host; the ranks meet at `address` and `port`.

    agent_store: torchrun listens there already, otherwise rank 0 must. restart: how often torchrun has started anew.
    """

    rank: int
    ranks: int
    local_rank: int
    local_ranks: int
    hosts: int
    address: str
    port: int
    agent_store: bool = False
    restart: int = 0


def find_seat(environment: Mapping[str, str] = os.environ) -> Seat | None:
    """The seat of this process; None if it was started alone."""
    return _from_torchrun(environment) or _from_slurm(environment)


def _from_torchrun(environment: Mapping[str, str]) -> Seat | None:
    if not all(environment.get(key) for key in ("RANK", "WORLD_SIZE", "MASTER_ADDR")):
        return None
    ranks = int(environment["WORLD_SIZE"])
    local_ranks = int(environment.get("LOCAL_WORLD_SIZE", "1"))
    return Seat(
        rank=int(environment["RANK"]),
        ranks=ranks,
        local_rank=int(environment.get("LOCAL_RANK", "0")),
        local_ranks=local_ranks,
        hosts=int(environment.get("GROUP_WORLD_SIZE", str(max(1, ranks // local_ranks)))),
        address=environment["MASTER_ADDR"],
        port=int(environment.get("MASTER_PORT", "29500")),
        agent_store=environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        restart=int(environment.get("TORCHELASTIC_RESTART_COUNT", "0")),
    )


def _from_slurm(environment: Mapping[str, str]) -> Seat | None:
    if "SLURM_JOB_ID" in environment and "SLURM_STEP_ID" not in environment:
        return None  # the batch script itself: it sees the number of tasks, but srun has not started them
    ranks = int(environment.get("SLURM_STEP_NUM_TASKS") or environment.get("SLURM_NTASKS") or "1")
    if "SLURM_PROCID" not in environment or ranks < 2:
        return None
    hosts = int(environment.get("SLURM_STEP_NUM_NODES") or environment.get("SLURM_NNODES") or "1")
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST") or "127.0.0.1"
    port = 20_000 + int(environment.get("SLURM_JOB_ID", "0")) % 10_000
    return Seat(
        rank=int(environment["SLURM_PROCID"]),
        ranks=ranks,
        local_rank=int(environment.get("SLURM_LOCALID", "0")),
        local_ranks=ranks // hosts,
        hosts=hosts,
        address=environment.get("MASTER_ADDR") or first_host(nodes),
        port=int(environment.get("MASTER_PORT") or port),
    )


def first_host(nodes: str) -> str:
    """The first host of a Slurm list such as `gpu[03-05,09],login1`."""
    match = re.match(r"([^,\[]+)(?:\[([^\],-]+)[^\]]*\])?([^,\[]*)", nodes)
    assert match is not None
    return "".join(part or "" for part in match.groups())
