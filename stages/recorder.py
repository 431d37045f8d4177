"""`ExpertLoadRecorder`: counts where a router sends tokens, for an engine, a training loop or a model that is run here.

recorder = ExpertLoadRecorder(layers=16, experts=64, device="cuda")
with recorder.watching(model):            # or, by hand: recorder.record(layer, topk_ids)
    for batch in batches:
        model(**batch)
        recorder.end_window()
load = recorder.load_stats()              # summed over the ranks of torch.distributed, if there are several
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from stages.errors import BadInput
from stages.load import LoadStats

if TYPE_CHECKING:
    import torch


class ExpertLoadRecorder:
    """Counts top-k choices per window, MoE layer and logical expert. Counting waits for nothing: no value leaves the
    device before `load_stats`."""

    def __init__(self, layers: int, experts: int, device: str | torch.device = "cpu") -> None:
        """`layers`: L, counted as MoE layers; `experts`: E."""
        import torch

        if layers < 1 or experts < 1:
            raise BadInput(f"A recorder of {layers} layers and {experts} experts is not possible: at least 1 of each.")
        self.layers, self.experts = layers, experts
        self._count = torch.zeros((layers, experts + 1), dtype=torch.int64, device=device)
        self._windows: list[torch.Tensor] = []
        self._labels: list[str] = []
        self.enabled = True

    def record(self, layer: int, topk_ids: torch.Tensor) -> None:
        """Count a router's choices: `topk_ids` holds logical experts in any shape, -1 where there is no token. Ids beyond
        the experts are not counted."""
        import torch

        if not self.enabled:
            return
        row = self._count[layer]
        ids = topk_ids.detach().reshape(-1).to(device=row.device, dtype=torch.int64)
        ids = torch.where((ids >= 0) & (ids < self.experts), ids, self.experts)
        row.scatter_add_(0, ids, torch.ones_like(ids))

    def end_window(self, label: str = "") -> None:
        """What was counted since the last call is a window. Every rank must end as many windows as every other."""
        self._windows.append(self._count[:, : self.experts].clone())
        self._labels.append(label)
        self._count.zero_()

    def reset(self) -> None:
        """Forget everything."""
        self._count.zero_()
        self._windows.clear()
        self._labels.clear()

    @property
    def windows(self) -> int:
        return len(self._windows)

    def load_stats(self, group: torch.distributed.ProcessGroup | None = None) -> LoadStats:
        """The loads of all ranks of `group` (default: all there are), by one all-reduce where there are several.

        Raises `BadInput` where no window was ended.
        """
        import torch

        if not self._windows:
            raise BadInput("Nothing was recorded: the recorder has no window (end_window was never called).")
        count = torch.stack(self._windows)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(count, group=group)
        labels = tuple(self._labels) if any(self._labels) else ()
        return LoadStats(count.cpu().numpy(), labels)

    @contextmanager
    def watching(self, model: torch.nn.Module) -> Iterator[ExpertLoadRecorder]:
        """Record what the routers of a Hugging Face MoE model choose, by hooks that leave its code alone and are taken
        away at the end. Raises `BadInput` where the model has no routers that are known, or other ones."""
        from stages.routers import find_routers

        routers = find_routers(model)
        if len(routers) != self.layers or any(router.experts != self.experts for router in routers):
            found = f"{len(routers)} MoE layers of {sorted({router.experts for router in routers})} experts"
            raise BadInput(f"The model has {found}, but the recorder is of {self.layers} layers and {self.experts}.")
        handles = [router.watch(lambda ids, layer=n: self.record(layer, ids)) for n, router in enumerate(routers)]  # type: ignore[misc]
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()
