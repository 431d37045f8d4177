"""Where the ranks are and how fast the links between them are."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from stages.errors import BadInput


@dataclass
class Link:
    """One direction of one link: `gb_per_s` in 10^9 bytes a second, `latency_us` in microseconds a message."""

    gb_per_s: float = 1.0
    latency_us: float = 0.0

    def seconds(self, nbytes: float, messages: float = 1) -> float:
        return nbytes / (self.gb_per_s * 1e9) + messages * self.latency_us * 1e-6


@dataclass
class Links:
    """`within_node`: each GPU to its node's fast fabric; `between_nodes`: each GPU to the network."""

    within_node: Link = field(default_factory=lambda: Link(350.0, 10.0))
    between_nodes: Link = field(default_factory=lambda: Link(50.0, 20.0))


@dataclass
class Topology:
    """`nodes` groups of `gpus_per_node` GPUs that share a fast link; rank r is on node r // gpus_per_node."""

    name: str = "2x4"
    nodes: int = 2
    gpus_per_node: int = 4
    gpus_per_host: int | None = None
    links: Links = field(default_factory=Links)

    def __post_init__(self) -> None:
        for key in ("nodes", "gpus_per_node", "gpus_per_host"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise BadInput(f"topology.{key}={value} is not possible: it must be at least 1.")
        for key in ("within_node", "between_nodes"):
            link: Link = getattr(self.links, key)
            if not link.gb_per_s > 0:
                raise BadInput(f"topology.links.{key}.gb_per_s={link.gb_per_s} is not possible: it must be above 0.")
            if not link.latency_us >= 0:
                raise BadInput(f"topology.links.{key}.latency_us={link.latency_us} must not be negative.")

    @property
    def ranks(self) -> int:
        return self.nodes * self.gpus_per_node

    def node_of_rank(self) -> npt.NDArray[np.int64]:
        """[R]: the node of each rank."""
        return np.arange(self.ranks) // self.gpus_per_node
