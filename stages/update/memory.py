"""Whether the weights fit, asked before any rank starts."""

from __future__ import annotations

from stages.errors import BadInput
from stages.model import TensorSpec
from stages.update import machine

PROCESS_BYTES = {"gloo": 64 << 20, "nccl": 2 << 30}
"""What a rank takes besides its tensors: its process on a CPU, the context and NCCL's buffers on a GPU."""
TEMPORARIES = 4
"""Filling and hashing hold a few copies of the largest tensor of an expert for a moment."""


def rank_bytes(
    specs: list[TensorSpec], layers: int, slots_per_rank: int, staging_bytes: int, link_mib: int, backend: str
) -> int:
    """What one rank needs: its slots, staging, the link's messages, temporaries."""
    expert = sum(spec.nbytes for spec in specs)
    largest = max(spec.nbytes for spec in specs)
    link = 2 * (link_mib << 20)
    return layers * slots_per_rank * expert + staging_bytes + TEMPORARIES * largest + link + PROCESS_BYTES[backend]


def check_memory(needed: int, found: machine.Machine) -> None:
    """Raise `BadInput` unless every rank on this host can have `needed` bytes."""
    if found.backend == "nccl":
        sharing = -(-found.local_ranks // len(machine.gpus()))
        available = min(gpu.memory_bytes for gpu in machine.gpus())
        place = "a GPU here has"
    else:
        sharing = found.local_ranks
        free = machine.available_memory()
        if free is None:
            return
        available, place = free, "this machine has"
    if needed * sharing > available:
        raise BadInput(
            f"The slots of {sharing} rank{'s' if sharing > 1 else ''} need {needed * sharing / 1e9:.1f} GB, and "
            f"{place} {available / 1e9:.1f} GB: use a smaller model.scale, a smaller model, or a larger topology."
        )
