"""What ranks that were started apart must have in common before the first byte moves, and what to say if they do not."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from functools import cache
from pathlib import Path

import stages
from stages.update.config import UpdateStageConfig
from stages.update.machine import Machine

OWN_AFFAIR = ("weights_path", "journal", "ranks")
"""Options of the update that may differ from host to host."""


def facts(config: UpdateStageConfig, machine: Machine) -> dict[str, str]:
    """What a rank has come with."""
    options = {key: value for key, value in asdict(config.update).items() if key not in OWN_AFFAIR}
    return {
        "config": _digest([config.key_config(), options]),
        "code": code_digest(),
        "versions": f"torch {machine.torch} and NCCL {machine.nccl}",
        "transport": f"{machine.backend} by {machine.transport}",
    }


def disagreement(rank: int, theirs: dict[str, str], ours: dict[str, str]) -> str:
    """What `rank` has otherwise than rank 0, as a sentence; empty if nothing."""
    differing = [key for key in ours if theirs.get(key) != ours[key]]
    if not differing:
        return ""
    key = differing[0]
    if key == "config":
        return (
            f"Rank {rank} has another config of update, model, topology or seed than rank 0: start all ranks with the same "
            "command."
        )
    if key == "code":
        return f"Rank {rank} runs other code of moesaic than rank 0: install the same version on every host."
    return f"Rank {rank} has {theirs.get(key)}, rank 0 has {ours[key]}: start all ranks in the same environment."


@cache
def code_digest() -> str:
    """SHA-256 over the source of all stages."""
    root = Path(stages.__path__[0])
    files = sorted(root.rglob("*.py"), key=lambda file: file.relative_to(root).as_posix())
    return _digest([[file.relative_to(root).as_posix(), file.read_text(encoding="utf-8")] for file in files])


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
