"""Load statistics: how many tokens each logical expert got, per window and layer."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from stages import paths
from stages.expert_map import ExpertMap


@dataclass(frozen=True)
class LoadStats:
    """`logical_count`: int64 `[T, L, E]`, tokens routed to each expert in each of T windows.

    `labels`: `[T]` names of the windows. `current`: the `[L, P]` map that the loads came with, if they did.
    """

    logical_count: npt.NDArray[np.int64]
    labels: tuple[str, ...] = field(default=())
    current: ExpertMap | None = None

    def __post_init__(self) -> None:
        assert self.logical_count.ndim == 3
        assert self.logical_count.dtype == np.int64
        assert len(self.labels) in (0, self.logical_count.shape[0])

    @property
    def windows(self) -> int:
        return self.logical_count.shape[0]

    @property
    def layers(self) -> int:
        return self.logical_count.shape[1]

    @property
    def experts(self) -> int:
        return self.logical_count.shape[2]

    def total(self) -> npt.NDArray[np.float64]:
        """[L, E]: the load over all windows."""
        return self.logical_count.sum(axis=0).astype(np.float64)


def write_load(folder: Path, load: LoadStats) -> tuple[str, ...]:
    """Write the artifact and its CSV preview (totals by layer and expert) into `folder`; the names of both."""
    from safetensors.numpy import save_file

    tensors: dict[str, npt.NDArray[np.int64]] = {"logical_count": np.ascontiguousarray(load.logical_count)}
    if load.current is not None:
        tensors["physical_to_logical_map"] = np.ascontiguousarray(load.current)
    with paths.atomic(folder / paths.LOAD) as temporary:
        # One metadata key: safetensors does not keep the order of several, and the digest must not change.
        save_file(tensors, temporary, metadata={"moesaic": json.dumps({"labels": list(load.labels)})})
    totals = load.logical_count.sum(axis=0).tolist()
    lines = ["layer,expert,count"]
    lines += [f"{layer},{expert},{count}" for layer, row in enumerate(totals) for expert, count in enumerate(row)]
    paths.write_text(folder / paths.LOAD_PREVIEW, "\n".join(lines) + "\n")
    return paths.LOAD, paths.LOAD_PREVIEW


def read_load(path: Path) -> LoadStats:
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        labels = json.loads(file.metadata()["moesaic"])["labels"]
        count = file.get_tensor("logical_count")
        names = set(file.keys())
        current = file.get_tensor("physical_to_logical_map") if "physical_to_logical_map" in names else None
    return LoadStats(count, tuple(labels), current)
