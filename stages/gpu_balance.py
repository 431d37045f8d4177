"""The balance artifact: the load of every GPU before and after, and what no placement can beat."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from stages import paths
from stages.balance import balancedness_per_layer

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class GpuBalance:
    """Loads in tokens, over all windows. `before` `[L, R]`, `after` `[L, R']`: of each GPU that takes part before and
    after; `bound` `[L]`: proven: no placement in these slots gives the fullest GPU of a layer less."""

    before: Floats
    after: Floats
    bound: Floats

    @property
    def least_even(self) -> int:
        """The layer of the least balancedness after."""
        return int(balancedness_per_layer(self.after).argmin())

    def of_layer(self, layer: int) -> tuple[Floats, Floats, float]:
        """Loads before and after, of as many GPUs as ever take part, and the bound: all over the mean load after."""
        mean = float(self.after[layer].mean()) or 1.0
        gpus = max(self.before.shape[1], self.after.shape[1])
        before, after = (np.pad(m[layer], (0, gpus - m.shape[1])) / mean for m in (self.before, self.after))
        return before, after, float(self.bound[layer]) / mean


def write_gpu_balance(folder: Path, balance: GpuBalance) -> tuple[str, ...]:
    from safetensors.numpy import save_file

    tensors = {
        "gpu_load_before": np.ascontiguousarray(balance.before),
        "gpu_load_after": np.ascontiguousarray(balance.after),
        "lower_bound": np.ascontiguousarray(balance.bound),
    }
    with paths.atomic(folder / paths.GPU_BALANCE) as temporary:
        save_file(tensors, temporary)
    return (paths.GPU_BALANCE,)


def read_gpu_balance(path: Path) -> GpuBalance:
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        return GpuBalance(*(file.get_tensor(name) for name in ("gpu_load_before", "gpu_load_after", "lower_bound")))
