"""What is placed on its own: a layer, or where groups keep to their nodes, the part of a layer on one node."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from stages.balance import lower_bound
from stages.expert_map import EMPTY, ExpertMap
from stages.topology import Topology

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Experts = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Row:
    """`experts` [E'] on the ranks from `first` on: `load` [E'], `capacity` [R'] slots of each, `current` [R', S], which
    counts experts within the row (-1 for a hole, also where a rank has no more slots), or None where what is in place
    does not fit; `bound`: no largest GPU load is below."""

    layer: int
    experts: Ints
    first: int
    load: Floats
    capacity: Ints
    current: Experts | None
    bound: float

    @property
    def slots(self) -> int:
        return int(self.capacity.sum())

    @property
    def most(self) -> int:
        """Replicas that an expert may have: no two on one rank, unless there are more slots than that could fill."""
        usable = int((self.capacity > 0).sum())
        return usable if self.slots <= usable * len(self.experts) else self.slots - len(self.experts) + 1

    def as_logical(self, slot: Experts) -> ExpertMap:
        """`slot` [R', S] with the experts numbered as in the layer."""
        return np.where(slot >= 0, self.experts[np.maximum(slot, 0)], EMPTY)


def make_rows(
    load: Floats, capacity: Ints, current: ExpertMap, topology: Topology, node_of_expert: Ints | None = None
) -> list[Row]:
    """The rows of all layers, in order. load [L, E], capacity [L, R], current [L, P]; `node_of_expert` [L, E] where
    experts keep to nodes."""
    layers, experts = load.shape
    ranks = topology.ranks
    rows: list[Row] = []
    if node_of_expert is None:
        bounds = lower_bound(load, capacity.sum(axis=1), ranks, capacity.max(axis=1))
    for layer in range(layers):
        now = current[layer].reshape(ranks, -1)
        if node_of_expert is None:
            every = np.arange(experts)
            start = _within(now, capacity[layer], experts)
            rows.append(Row(layer, every, 0, load[layer], capacity[layer], start, float(bounds[layer])))
            continue
        parts = []
        alien = False
        for node in range(topology.nodes):
            here = slice(node * topology.gpus_per_node, (node + 1) * topology.gpus_per_node)
            own = np.flatnonzero(node_of_expert[layer] == node)
            if not len(own):  # a node without a group has nothing to place
                alien |= bool((now[here] != EMPTY).any())
                continue
            room = capacity[layer, here]
            bound = lower_bound(load[layer, own][None], room.sum(keepdims=True), len(room), room.max(keepdims=True))
            place = np.full(experts + 1, -2)  # the last for holes
            place[own], place[-1] = np.arange(len(own)), EMPTY
            start = _within(place[now[here]], room, len(own))
            parts.append(Row(layer, own, here.start, load[layer, own], room, start, float(bound[0])))
        rows += [replace(row, current=None) for row in parts] if alien else parts
    return rows


def _within(now: Ints, capacity: Ints, experts: int) -> Experts | None:
    """`now` [R', S] with each rank's experts first and its holes last; None if more are there than slots, or a stranger
    (below -1) is, or one of the experts is not."""
    strangers, missing = (now < EMPTY).any(), len(np.unique(now[now >= 0])) < experts
    if strangers or missing or ((now != EMPTY).sum(axis=1) > capacity).any():
        return None
    order = np.argsort(now == EMPTY, axis=1, kind="stable")
    return np.take_along_axis(now, order, axis=1).astype(np.int32)
