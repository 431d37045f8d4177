"""Where the ranks are and how fast the links between them are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from stages.errors import BadInput

Floats = npt.NDArray[np.float64]
MOST_RANKS = 16_384
"""Of a topology: a table of ranks x ranks takes 2 GB then."""


@dataclass
class Link:
    """One direction of one link.

    gb_per_s:   10^9 bytes a second
    latency_us: microseconds a message
    curve:      [bytes, fraction] pairs in ascending order: what goes out at once reaches that fraction of `gb_per_s`
                when it is that large. Between two pairs the time is interpolated; less than the first takes as long as
                the first, and what is beyond the last goes at full speed. Without a curve every size has the full speed
    """

    gb_per_s: float = 1.0
    latency_us: float = 0.0
    curve: list[Any] = field(default_factory=list)

    def seconds(self, nbytes: npt.ArrayLike, messages: npt.ArrayLike = 1) -> Floats:
        """Of `nbytes` that go out at once in so many messages, elementwise; nothing takes no time."""
        size, count = np.asarray(nbytes, dtype=np.float64), np.asarray(messages, dtype=np.float64)
        speed = self.gb_per_s * 1e9
        moving = size / speed
        if self.curve:
            sizes, fractions = np.asarray(self.curve, dtype=np.float64).T
            times = sizes / (speed * fractions)
            moving = np.interp(size, sizes, times) + np.maximum(size - sizes[-1], 0.0) / speed
            moving = np.where(size > 0, moving, 0.0)
        return moving + count * self.latency_us * 1e-6

    def check(self, key: str) -> None:
        if not 0 < self.gb_per_s < math.inf:
            raise BadInput(f"{key}.gb_per_s={self.gb_per_s} is not possible: it must be above 0.")
        if not 0 <= self.latency_us < math.inf:
            raise BadInput(f"{key}.latency_us={self.latency_us} must not be negative.")
        before = 0.0
        for point in self.curve:
            if not _is_pair(point) or not before < point[0] < math.inf or not 0 < point[1] <= 1:
                raise BadInput(
                    f"{key}.curve holds {point}: pairs of bytes, each more than the one before, and of a fraction of "
                    "gb_per_s above 0 and at most 1 are expected."
                )
            before = point[0]


def _is_pair(point: object) -> bool:
    return (
        isinstance(point, Sequence)
        and len(point) == 2
        and all(isinstance(number, int | float) and not isinstance(number, bool) for number in point)
    )


@dataclass
class Links:
    """The links of a topology.

    within_node:   each GPU to its node's fast fabric
    between_nodes: each GPU to the network
    node_gb_per_s: 10^9 bytes a second that all GPUs of a node together get into the network, and out of it; null: the
                   sum of theirs
    """

    within_node: Link = field(default_factory=lambda: Link(350.0, 10.0))
    between_nodes: Link = field(default_factory=lambda: Link(50.0, 20.0))
    node_gb_per_s: float | None = None


@dataclass
class Device:
    """What a rank does besides sending, for predictions.

    copy_gb_per_s:     10^9 bytes copied in a second
    checksum_gb_per_s: 10^9 bytes hashed in a second
    layer_us:          a layer of the reference executor, whatever moves in it
    batch_us:          a batch of the pipelined executor, whatever moves in it: launches, the vote
    layer_message_us:  queueing a message or a copy of the reference executor (one tensor of one expert), which a host
                       does ahead of its GPU; null: nothing is queued, and a message takes the latency of its link
    batch_message_us:  a message of the pipelined executor beside its bytes; null: the latency of its link
    layer_share:       of the speed of its links, what the many messages of a layer reach together where they are queued
    """

    copy_gb_per_s: float = 5.0
    checksum_gb_per_s: float = 2.0
    layer_us: float = 0.0
    batch_us: float = 0.0
    layer_message_us: float | None = None
    batch_message_us: float | None = None
    layer_share: float = 1.0


@dataclass
class Topology:
    """Groups of GPUs that share a fast link; rank r is on node r // gpus_per_node.

    name:          for people
    nodes:         groups of GPUs that share a fast link
    gpus_per_node: GPUs (ranks) in each of them
    gpus_per_host: GPUs of one host, where a node spans several; null: a node is a host
    rails:         GPU i of a node reaches GPU i of the others best (a switch for each i), so that crossings keep to them
    links:         how fast the links are
    device:        what a rank does besides sending
    """

    name: str = "2x4"
    nodes: int = 2
    gpus_per_node: int = 4
    gpus_per_host: int | None = None
    rails: bool = False
    links: Links = field(default_factory=Links)
    device: Device = field(default_factory=Device)

    def __post_init__(self) -> None:
        for key in ("nodes", "gpus_per_node", "gpus_per_host"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise BadInput(f"topology.{key}={value} is not possible: it must be at least 1.")
        if self.ranks > MOST_RANKS:
            raise BadInput(
                f"topology.nodes x topology.gpus_per_node are {self.ranks:,} ranks: at most {MOST_RANKS:,} can be planned "
                "for, since traffic is a table of ranks x ranks."
            )
        self.links.within_node.check("topology.links.within_node")
        self.links.between_nodes.check("topology.links.between_nodes")
        if self.links.node_gb_per_s is not None and not 0 < self.links.node_gb_per_s < math.inf:
            raise BadInput(
                f"topology.links.node_gb_per_s={self.links.node_gb_per_s} is not possible: it must be above 0."
            )
        for key in ("copy_gb_per_s", "checksum_gb_per_s"):
            if not 0 < getattr(self.device, key) < math.inf:
                raise BadInput(
                    f"topology.device.{key}={getattr(self.device, key)} is not possible: it must be above 0."
                )
        if not 0 < self.device.layer_share <= 1:
            raise BadInput(
                f"topology.device.layer_share={self.device.layer_share} is not possible: it must be above 0 and at most 1."
            )
        for key in ("layer_us", "batch_us", "layer_message_us", "batch_message_us"):
            if not 0 <= (getattr(self.device, key) or 0) < math.inf:
                raise BadInput(f"topology.device.{key}={getattr(self.device, key)} must not be negative.")

    @property
    def ranks(self) -> int:
        return self.nodes * self.gpus_per_node

    @property
    def node_gb_per_s(self) -> float:
        """Of a whole node into the network, and out of it."""
        together = self.gpus_per_node * self.links.between_nodes.gb_per_s
        limit = self.links.node_gb_per_s
        return together if limit is None else min(together, limit)

    def node_of_rank(self) -> npt.NDArray[np.int64]:
        """[R]: the node of each rank."""
        return np.arange(self.ranks) // self.gpus_per_node


def as_config(topology: Topology, remarks: list[str]) -> str:
    """A file of the config group `topology`, which begins with `remarks`."""

    def link(value: Link) -> list[str]:
        lines = [f"    gb_per_s: {value.gb_per_s}", f"    latency_us: {value.latency_us}"]
        return lines + (["    curve:", *(f"    - {point}" for point in value.curve)] if value.curve else [])

    lines = [
        *(f"# {remark}" for remark in remarks),
        "defaults: [schema, _self_]",
        f"name: {topology.name}",
        f"nodes: {topology.nodes}",
        f"gpus_per_node: {topology.gpus_per_node}",
        f"rails: {str(topology.rails).lower()}",
        "links:",
        "  within_node:",
        *link(topology.links.within_node),
        "  between_nodes:",
        *link(topology.links.between_nodes),
        f"  node_gb_per_s: {'null' if topology.links.node_gb_per_s is None else topology.links.node_gb_per_s}",
        "device:",
        *(f"  {key}: {'null' if value is None else value}" for key, value in asdict(topology.device).items()),
    ]
    return "\n".join(lines) + "\n"
