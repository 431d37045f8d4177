"""What a plan costs by the speeds of the topology's links: a prediction, and a bound that no plan can beat.

A GPU has one link into its node's fabric and one to the network. Directions go at once, the two links take turns. A hop
of an expert of K tensors is K messages. `direct` runs layer after layer, each as long as its busiest GPU and direction:

    layer     = max over ranks and directions of sum over both links of (bytes / speed + messages * latency)
    predicted = sum over layers

The bound leaves out latency and the order, and holds whatever way the experts take that the plan's ranks lack: a rank
receives each of them over its faster link at best, and an expert that a node lacks crosses into it at least once,
spread evenly over the network links of the node's GPUs:

    bound = max( max over ranks of bytes it lacks / faster speed,
                 max over nodes of bytes it lacks / (gpus_per_node * speed between nodes) )
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from stages.topology import Link, Topology
from stages.transfers import Ints, TransferPlan

Floats = npt.NDArray[np.float64]


def predicted_seconds_of_layers(plan: TransferPlan, topology: Topology, layers: int, tensors: int) -> Floats:
    """[L]: predicted seconds of each layer, every hop being `tensors` messages."""
    network = plan.select(plan.network)
    node = topology.node_of_rank()
    cross = node[network.src_rank] != node[network.dst_rank]
    slowest = np.zeros(layers)
    for end in (network.src_rank, network.dst_rank):
        at = network.layer * topology.ranks + end
        seconds = np.zeros(layers * topology.ranks)
        for link, over in ((topology.links.within_node, ~cross), (topology.links.between_nodes, cross)):
            seconds += np.bincount(
                at[over], weights=_seconds(link, network.bytes[over], tensors), minlength=len(seconds)
            )
        slowest = np.maximum(slowest, seconds.reshape(layers, topology.ranks).max(axis=1))
    return slowest


def lower_bound_seconds(plan: TransferPlan, topology: Topology) -> float:
    """Seconds that bringing the ranks what they lack takes at least."""
    network = plan.select(plan.network)
    node = topology.node_of_rank()
    within, between = topology.links.within_node.gb_per_s * 1e9, topology.links.between_nodes.gb_per_s * 1e9

    needed = network.select(network.dst_slot >= 0)
    bytes_of_rank = np.bincount(needed.dst_rank, weights=needed.bytes, minlength=topology.ranks)
    fastest = max(within, between) if topology.nodes > 1 else within

    entering = network.select(node[network.src_rank] != node[network.dst_rank])
    where = np.stack([entering.layer, entering.logical_expert, node[entering.dst_rank]])
    _, first = np.unique(where, axis=1, return_index=True)
    bytes_of_node = np.bincount(where[2, first], weights=entering.bytes[first], minlength=topology.nodes)
    return float(max(bytes_of_rank.max() / fastest, bytes_of_node.max() / (topology.gpus_per_node * between)))


def _seconds(link: Link, nbytes: Ints, messages: int) -> Floats:
    """[N]: seconds of each hop on `link`."""
    return nbytes / (link.gb_per_s * 1e9) + messages * link.latency_us * 1e-6
