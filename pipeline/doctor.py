"""`moesaic doctor`: what this machine can run, what is missing, and how to get it."""

from __future__ import annotations

import json
import os
import platform
import shutil
import socket
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlparse

from pipeline.credentials import hidden
from pipeline.store import SQLITE
from stages.errors import MoesaicError


@dataclass(frozen=True)
class Finding:
    """One thing looked at. `needed`: moesaic cannot run without it. `remedy`: how to get what is missing."""

    what: str
    ok: bool
    found: str
    remedy: str = ""
    needed: bool = False


def examine(uri: str) -> list[Finding]:
    return [_python(), *_torch(), *_gpus(), _links(), _memory(), _shared_memory(), _store(uri)]


def render(findings: list[Finding], *, as_json: bool) -> str:
    if as_json:
        return json.dumps([asdict(finding) for finding in findings], indent=1)
    lines = []
    for finding in findings:
        mark = "ok     " if finding.ok else "MISSING" if finding.needed else "no     "
        lines.append(f"{mark}  {finding.what:<18} {finding.found}")
        if not finding.ok and finding.remedy:
            lines.append(f"{'':9}{'':<18} {finding.remedy}")
    return "\n".join(lines)


def _python() -> Finding:
    ok = (3, 11) <= sys.version_info[:2] < (3, 14)
    return Finding("Python", ok, platform.python_version(), "Install Python 3.11, 3.12 or 3.13.", needed=True)


def _torch() -> list[Finding]:
    try:
        import torch
        import torch.distributed as dist
    except ImportError as error:
        return [Finding("torch", False, str(error), "pip install torch", needed=True)]
    gloo = dist.is_available() and dist.is_gloo_available()
    nccl = dist.is_available() and dist.is_nccl_available()
    version = ".".join(map(str, torch.cuda.nccl.version())) if nccl and torch.cuda.is_available() else "in this build"  # type: ignore[no-untyped-call]
    return [
        Finding("torch", True, torch.__version__, needed=True),
        Finding("gloo (CPU ranks)", gloo, "yes" if gloo else "no", "Install a torch build with gloo.", needed=True),
        Finding(
            "NCCL (GPU ranks)", nccl, version if nccl else "not in this build of torch",
            "On a machine with NVIDIA GPUs install torch's CUDA build: pip install torch.",
        ),
    ]  # fmt: skip


def _gpus() -> list[Finding]:
    try:
        import torch
    except ImportError:
        return []
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        return [Finding("GPUs", False, "none seen by torch", "Ranks run on the CPU with gloo: update.backend=gloo.")]
    names = sorted({torch.cuda.get_device_name(index) for index in range(count)})
    memory = min(torch.cuda.mem_get_info(index)[1] for index in range(count)) / 1e9
    return [Finding("GPUs", True, f"{count} × {', '.join(names)}, {memory:.0f} GB each")]


def _links() -> Finding:
    """Whether every pair of GPUs can read the other's memory, over NVLink or PCIe."""
    try:
        import torch
    except ImportError:
        return Finding("GPU links", False, "torch is missing")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count < 2:
        return Finding("GPU links", False, "fewer than two GPUs: none")
    pairs = [(a, b) for a in range(count) for b in range(count) if a != b]
    reached = sum(torch.cuda.can_device_access_peer(a, b) for a, b in pairs)
    text = f"{reached} of {len(pairs)} ordered pairs have peer access"
    return Finding("GPU links", reached == len(pairs), text, "Pairs without it go through host memory, slowly.")


def _memory() -> Finding:
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Finding("CPU and memory", True, f"{cores} cores, {pages * size / 1e9:.0f} GB")


def _shared_memory() -> Finding:
    free = shutil.disk_usage("/dev/shm").free / 1e6 if Path("/dev/shm").is_dir() else 0.0
    remedy = "NCCL needs it between ranks of a host: start containers with --shm-size=1g or --ipc=host."
    return Finding("/dev/shm", free > 64, f"{free:,.0f} MB free", remedy)


def _store(where: str) -> Finding:
    if where.startswith(SQLITE) and not Path(where.removeprefix(SQLITE)).exists():
        return Finding("tracking store", True, f"{where} (the first run makes it)")
    try:
        _connect(where)
        from mlflow import MlflowClient

        count = len(MlflowClient(where).search_experiments(max_results=1000))
    except Exception as error:  # whatever a client of a store raises, it does not answer
        cause = MoesaicError(f"{type(error).__name__}: {str(error).splitlines()[0][:200]}")
        return Finding(
            "tracking store", False, f"{hidden(where)} does not answer: {cause}",
            "Check tracking.uri or MLFLOW_TRACKING_URI, and that the server runs.", needed=True,
        )  # fmt: skip
    return Finding("tracking store", True, f"{hidden(where)}, {count} experiments")


def _connect(uri: str) -> None:
    """Raise at once if nobody listens at a server's address: MLflow's own client would retry for long."""
    address = urlparse(uri)
    if address.scheme in ("http", "https") and address.hostname:
        port = address.port or (443 if address.scheme == "https" else 80)
        socket.create_connection((address.hostname, port), timeout=5).close()
