"""What all ranks of one update must know: the two maps and the plan between them, checked, and as bytes."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from stages.direct import direct_transfers
from stages.errors import BadInput
from stages.expert_map import EMPTY, ExpertMap, check_map, replica_counts, slots_per_rank
from stages.placement import read_placement
from stages.transfers import COLUMNS, Ints, TransferPlan, read_transfers


@dataclass(frozen=True)
class Job:
    """`old`, `new`: `[L, P]`. `direct`: the plan is what every rank finds by itself from the two maps. `folder`: where
    ranks leave files of their own; all hosts must see it.
    """

    old: ExpertMap
    new: ExpertMap
    plan: TransferPlan
    ranks: int
    direct: bool
    folder: str = ""

    @property
    def layers(self) -> int:
        return self.new.shape[0]

    @property
    def experts(self) -> int:
        """E, given that each is in one of the maps."""
        return _experts(self.old, self.new)

    @property
    def slots(self) -> int:
        return self.new.shape[1]

    @property
    def slots_per_rank(self) -> int:
        return slots_per_rank(self.new, self.ranks)

    @property
    def unheld(self) -> npt.NDArray[np.bool_]:
        """[L, P]: the slots whose new expert no slot of the old map holds, so that it must come from files."""
        return unheld_slots(self.old, self.new)

    def received_bytes(self) -> Ints:
        """[R]: what each rank receives over the network, relay hops included."""
        return self._network_bytes(self.plan.dst_rank)

    def sent_bytes(self) -> Ints:
        """[R]: what each rank sends over the network, relay hops included."""
        return self._network_bytes(self.plan.src_rank)

    def most_arrivals(self) -> int:
        """Experts that the busiest rank receives, at least one."""
        return max(1, int(np.bincount(self.plan.dst_rank[self.plan.network], minlength=1).max()))

    def digest(self, *more: object) -> str:
        """What is moved, as a name: of the maps, the plan, and whatever `more` decides how it is moved."""
        found = hashlib.sha256(repr((self.old.shape, self.ranks, more)).encode())
        for array in (self.old, self.new, *(getattr(self.plan, name) for name in COLUMNS)):
            found.update(np.ascontiguousarray(array).data)
        return found.hexdigest()[:32]

    def _network_bytes(self, rank: Ints) -> Ints:
        rows = self.plan.network
        return np.bincount(rank[rows], weights=self.plan.bytes[rows], minlength=self.ranks).astype(np.int64)

    def to_bytes(self) -> bytes:
        arrays = {name: getattr(self.plan, name) for name in COLUMNS}
        stream = io.BytesIO()
        np.savez(
            stream,
            old=self.old,
            new=self.new,
            facts=np.array([self.ranks, self.direct]),
            folder=np.array(self.folder),
            **arrays,
        )
        return stream.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> Job:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            plan = TransferPlan(**{name: arrays[name] for name in COLUMNS})
            ranks, direct = arrays["facts"].tolist()
            return cls(arrays["old"], arrays["new"], plan, ranks, bool(direct), str(arrays["folder"]))


def read_job(
    inputs: Mapping[str, Path], ranks: int, gpus_per_node: int, expert_bytes: int, *, from_files: bool = False
) -> Job:
    """The job of the artifacts `placement` and `transfers`. Raises `BadInput` where they do not fit each other."""
    placement = read_placement(inputs["placement"])
    plan = read_transfers(inputs["transfers"])
    old, new = placement.current, placement.physical_to_logical_map
    return make_job(old, new, plan, ranks, gpus_per_node, expert_bytes, from_files=from_files)


def make_job(
    old: ExpertMap,
    new: ExpertMap,
    plan: TransferPlan,
    ranks: int,
    gpus_per_node: int,
    expert_bytes: int,
    *,
    from_files: bool = False,
) -> Job:
    """`from_files`: experts that no slot of `old` holds need no rows."""
    if old.shape != new.shape:
        raise BadInput(
            f"placement.safetensors: the current map has shape {list(old.shape)}, the new one {list(new.shape)}; "
            "they must agree."
        )
    experts = _experts(old, new)
    for expert_map, name in ((old, "current"), (new, "physical_to_logical_map")):
        check_map(expert_map, experts, ranks, f"placement.safetensors: {name}", complete=False)
    _check_plan(plan, old, new, ranks, expert_bytes, from_files=from_files)
    return Job(old, new, plan, ranks, _is_direct(plan, old, new, ranks, gpus_per_node, expert_bytes))


def unheld_slots(old: ExpertMap, new: ExpertMap) -> npt.NDArray[np.bool_]:
    """[L, P]: the slots of `new` with an expert that no slot of the layer holds in `old`."""
    experts = _experts(old, new)
    return (new != EMPTY) & np.take_along_axis(replica_counts(old, experts) == 0, np.maximum(new, 0), axis=1)


def _experts(old: ExpertMap, new: ExpertMap) -> int:
    return int(max(old.max(initial=EMPTY), new.max(initial=EMPTY))) + 1


def _is_direct(
    plan: TransferPlan, old: ExpertMap, new: ExpertMap, ranks: int, gpus_per_node: int, expert_bytes: int
) -> bool:
    """Whether these are the rows of policy `direct`, in whichever rounds and order."""
    try:
        direct = direct_transfers(old, new, ranks, gpus_per_node, expert_bytes)
    except BadInput:  # the plan may bring experts from elsewhere
        return False
    plan = plan.select(np.lexsort((plan.dst_slot, plan.kind, plan.logical_expert, plan.layer)))
    columns = (name for name in COLUMNS if name != "round")
    return all(np.array_equal(getattr(plan, name), getattr(direct, name)) for name in columns)


def _check_plan(
    plan: TransferPlan, old: ExpertMap, new: ExpertMap, ranks: int, expert_bytes: int, *, from_files: bool
) -> None:
    """Every row must be possible, and the rows together must turn `old` into `new`."""
    layers, slots = new.shape
    per_rank = slots // ranks
    wrong = (plan.layer < 0) | (plan.layer >= layers)
    for rank, slot in ((plan.src_rank, plan.src_slot), (plan.dst_rank, plan.dst_slot)):
        wrong |= (rank < 0) | (rank >= ranks) | (slot >= slots) | ((slot >= 0) & (slot // per_rank != rank))
    wrong |= ~plan.network & ((plan.src_rank != plan.dst_rank) | (plan.src_slot < 0) | (plan.dst_slot < 0))
    wrong |= plan.network & (plan.src_rank == plan.dst_rank)
    if wrong.any():
        row = int(np.argmax(wrong))
        values = ", ".join(f"{name} {getattr(plan, name)[row]}" for name in COLUMNS)
        raise BadInput(
            f"transfers.parquet: row {row} ({values}) is not possible with {layers} layers, {slots} slots and "
            f"{ranks} ranks."
        )
    if (plan.bytes != expert_bytes).any():
        row = int(np.argmax(plan.bytes != expert_bytes))
        raise BadInput(
            f"transfers.parquet: row {row} moves {plan.bytes[row]} bytes, an expert of the model has {expert_bytes}: "
            "the plan was made for another model.tensors or model.scale."
        )
    landing = plan.dst_slot >= 0
    filled = np.zeros((layers, slots), dtype=np.int64)
    np.add.at(filled, (plan.layer[landing], plan.dst_slot[landing]), 1)
    reached = old.copy()
    reached[plan.layer[landing], plan.dst_slot[landing]] = plan.logical_expert[landing]
    missing = (reached != new) & (new != EMPTY)
    if from_files:
        missing &= (filled > 0) | ~unheld_slots(old, new)
    wrong_slots = np.argwhere(missing | (filled > 1))
    if len(wrong_slots):
        layer, slot = wrong_slots[0]
        raise BadInput(
            f"transfers.parquet does not lead to placement.safetensors: layer {layer} slot {slot} needs expert "
            f"{new[layer, slot]} and gets {reached[layer, slot]} from {filled[layer, slot]} rows."
        )
