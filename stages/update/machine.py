"""What this machine can run the ranks on: backend, device and versions. torch is imported only where there is a GPU."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

from stages.errors import BadInput
from stages.update.seat import Seat, find_seat


@dataclass(frozen=True)
class Gpu:
    name: str
    memory_bytes: int


@dataclass(frozen=True)
class Machine:
    """`local_ranks` of all ranks run on this host. `seat`: where torchrun or Slurm put this process, if they did."""

    backend: str
    device: str
    hosts: int
    torch: str
    nccl: str | None
    transport: str
    local_ranks: int
    seat: Seat | None

    def facts(self) -> dict[str, object]:
        """What of this machine can change a result."""
        return {key: value for key, value in asdict(self).items() if key not in ("local_ranks", "seat")}


def find(backend: str, ranks_kind: str, oversubscribe: bool, ranks: int, transport_kind: str = "auto") -> Machine:
    """Resolve `auto` for `ranks` ranks. Raises `BadInput` if they cannot run here."""
    seat = find_seat() if ranks_kind != "local" else None
    if ranks_kind == "attached" and seat is None:
        raise BadInput(
            "update.ranks=attached is not possible: neither torchrun nor Slurm started this process; "
            "allowed here are auto and local."
        )
    if seat is not None and seat.ranks != ranks:
        raise BadInput(
            f"{seat.ranks} processes were started, the topology asks for {ranks} ranks: start as many as "
            "topology.nodes x topology.gpus_per_node, or use update.ranks=local."
        )
    local_ranks = ranks if seat is None else seat.local_ranks
    found = gpus()
    if backend == "auto":
        backend = "nccl" if len(found) >= local_ranks or (found and oversubscribe) else "gloo"
    elif backend == "nccl" and len(found) < local_ranks and not (found and oversubscribe):
        count = f"{len(found)} GPU{'' if len(found) == 1 else 's'}"
        way_out = ", a smaller topology, or update.oversubscribe=true" if found else ""
        raise BadInput(
            f"update.backend=nccl is not possible: this machine has {count}, the topology asks for {local_ranks} "
            f"ranks here: use update.backend=gloo{way_out}."
        )
    on_gpu = backend == "nccl"
    return Machine(
        backend=backend,
        device=found[0].name if on_gpu else cpu_name(),
        hosts=1 if seat is None else seat.hosts,
        torch=version("torch"),
        nccl=nccl_version() if on_gpu else None,
        transport=transport(transport_kind, backend, oversubscribe, ranks),
        local_ranks=local_ranks,
        seat=seat,
    )


def transport(kind: str, backend: str, oversubscribe: bool, ranks: int) -> str:
    """Resolve `auto`: `peer` where all ranks are on this host and each GPU can write into every other's memory.

    Raises `BadInput` where `peer` is asked for and cannot be.
    """
    if backend == "gloo":
        if kind != "auto":
            raise BadInput(f"update.transport={kind} is not possible over gloo: it carries bytes between GPUs.")
        return "gloo"
    seat = find_seat()
    hosts = 1 if seat is None or seat.ranks != ranks else seat.hosts
    possible = hosts == 1 and not oversubscribe and ranks <= len(gpus()) and _reach_each_other(ranks)
    if kind == "peer" and not possible:
        raise BadInput(
            "update.transport=peer is not possible: it needs all ranks on one host, a GPU for each, and GPUs that can "
            "write into each other's memory; use update.transport=auto."
        )
    return "peer" if possible and kind != "nccl" else "nccl"


def _reach_each_other(count: int) -> bool:
    import torch

    pairs = ((a, b) for a in range(count) for b in range(count) if a != b)
    return all(torch.cuda.can_device_access_peer(a, b) for a, b in pairs)


@cache
def gpus() -> list[Gpu]:
    if "+cpu" in version("torch") or not Path("/dev/nvidiactl").exists():
        return []
    import torch

    properties = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return [Gpu(found.name, found.total_memory) for found in properties]


def nccl_version() -> str:
    import torch

    return ".".join(map(str, torch.cuda.nccl.version()))  # type: ignore[no-untyped-call]


@cache
def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def available_memory() -> int | None:
    """Bytes that processes can take without swapping; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    values = {key: rest for key, _, rest in (line.partition(":") for line in lines)}
    return int(values["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in values else None


def cores() -> int:
    return len(os.sched_getaffinity(0))
