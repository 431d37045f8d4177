"""Where a run came from: the code's git state, this machine, and the versions of what computes."""

from __future__ import annotations

import platform
import socket
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("moesaic", "torch", "numpy", "mlflow", "hydra-core", "omegaconf", "einops", "pyarrow", "safetensors")


@cache
def git_facts() -> dict[str, Any]:
    """Commit and dirty flag of the checkout that holds this code; empty if it was installed from a wheel."""
    here = Path(__file__).parent
    tracked = _git(here, "ls-files", "--error-unmatch", Path(__file__).name)
    commit = _git(here, "rev-parse", "HEAD")
    if not tracked or not commit:
        return {}
    return {"commit": commit.strip(), "dirty": bool((_git(here, "status", "--porcelain") or "").strip())}


def git_diff() -> str:
    """What the checkout has that its commit has not; empty where there is nothing."""
    return (_git(Path(__file__).parent, "diff", "HEAD") or "") if git_facts().get("dirty") else ""


@cache
def machine_facts() -> dict[str, Any]:
    packages = {}
    for name in PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = "not installed"
    return {
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": packages,
    }


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
