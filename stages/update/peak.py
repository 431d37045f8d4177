"""The memory that an update takes beside the weights, measured."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"
"""What Linux wants to be told in order to forget the peak of a process (proc(5))."""


class Peak:
    """From its making on. On a GPU: what torch allocates at most, or what is missing from the GPU's free memory if that
    is more (NCCL and memory shared between GPUs are no business of torch's allocator). On a CPU: resident memory."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
            self._begin, self._free = torch.cuda.memory_allocated(device), torch.cuda.mem_get_info(device)[0]
        else:
            with suppress(OSError):
                CLEAR.write_text(RESET_PEAK, encoding="ascii")
            self._begin = _resident("VmRSS")

    def nbytes(self) -> int:
        """The most since then; on a GPU, call it before what was taken is given back."""
        if self._device.type == "cuda":
            missing = self._free - torch.cuda.mem_get_info(self._device)[0]
            return max(0, missing, torch.cuda.max_memory_allocated(self._device) - self._begin)
        return max(0, _resident("VmHWM") - self._begin)


def _resident(key: str) -> int:
    """Bytes; 0 where the system does not say."""
    try:
        lines = STATUS.read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    values = [line.split()[1] for line in lines if line.startswith(f"{key}:")]
    return int(values[0]) * 1024 if values else 0
