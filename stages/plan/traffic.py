"""Who moves how many bytes: counts of a transfer plan, per GPU, node, layer and direction."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from einops import reduce

from stages.needs import Needs
from stages.plan.groups import group_needs
from stages.topology import Topology
from stages.transfers import Ints, Kind, TransferPlan

MATRIX_RANKS = 256
"""The most ranks for which the artifact holds the rank x rank matrix."""


@dataclass(frozen=True)
class Direction:
    """Bytes that leave (send) or reach (recv) each GPU `[R]`, over its node's fabric and over the network."""

    within_node_bytes_of_gpu: Ints
    cross_node_bytes_of_gpu: Ints
    gpus_per_node: int

    @property
    def bytes_of_gpu(self) -> Ints:
        return self.within_node_bytes_of_gpu + self.cross_node_bytes_of_gpu

    def of_node(self, bytes_of_gpu: Ints) -> Ints:
        """[nodes]"""
        return reduce(bytes_of_gpu, "(nodes gpus) -> nodes", "sum", gpus=self.gpus_per_node)

    def as_json(self) -> dict[str, object]:
        within, cross = self.within_node_bytes_of_gpu, self.cross_node_bytes_of_gpu
        return {
            "bytes_of_gpu": self.bytes_of_gpu.tolist(),
            "within_node_bytes_of_gpu": within.tolist(),
            "cross_node_bytes_of_gpu": cross.tolist(),
            "bytes_of_node": self.of_node(self.bytes_of_gpu).tolist(),
            "within_node_bytes_of_node": self.of_node(within).tolist(),
            "cross_node_bytes_of_node": self.of_node(cross).tolist(),
        }


@dataclass(frozen=True)
class Traffic:
    """Bytes of the hops of a plan that leave a GPU.

    `matrix` `[R, R]`: from rank (row) to rank (column). `same_node_bytes_of_layer`, `cross_node_bytes_of_layer` `[L]`.
    `moved_bytes`: each expert that a rank lacked, once; `relay_bytes`: hops out of ranks that are no source.
    """

    topology: Topology
    matrix: Ints
    same_node_bytes_of_layer: Ints
    cross_node_bytes_of_layer: Ints
    hops: dict[str, int]
    moved_bytes: int
    relay_bytes: int

    def as_json(self) -> dict[str, object]:
        topology = self.topology
        value: dict[str, object] = {
            "nodes": topology.nodes,
            "gpus_per_node": topology.gpus_per_node,
            "rows": self.hops,
            "moved_bytes": self.moved_bytes,
            "same_node_bytes": self.same_node_bytes,
            "cross_node_bytes": self.cross_node_bytes,
            "relay_bytes": self.relay_bytes,
            "send": self.send.as_json(),
            "recv": self.recv.as_json(),
            "same_node_bytes_of_layer": self.same_node_bytes_of_layer.tolist(),
            "cross_node_bytes_of_layer": self.cross_node_bytes_of_layer.tolist(),
            "bytes_from_node_to_node": self.node_matrix.tolist(),
        }
        if topology.ranks <= MATRIX_RANKS:
            value["bytes_from_rank_to_rank"] = self.matrix.tolist()
        else:
            value["bytes_from_rank_to_rank_omitted"] = (
                f"{topology.ranks} ranks; the matrix is kept up to {MATRIX_RANKS}"
            )
        return value

    @property
    def send(self) -> Direction:
        return self._direction("src dst -> src")

    @property
    def recv(self) -> Direction:
        return self._direction("src dst -> dst")

    @property
    def node_matrix(self) -> Ints:
        """[nodes, nodes]: bytes from node to node, those within a node on the diagonal."""
        gpus = self.topology.gpus_per_node
        return reduce(self.matrix, "(a gpus_a) (b gpus_b) -> a b", "sum", gpus_a=gpus, gpus_b=gpus)

    @property
    def same_node_bytes(self) -> int:
        return int(self.same_node_bytes_of_layer.sum())

    @property
    def cross_node_bytes(self) -> int:
        return int(self.cross_node_bytes_of_layer.sum())

    def _direction(self, pattern: str) -> Direction:
        node = self.topology.node_of_rank()
        within = np.where(node[:, None] == node, self.matrix, 0)
        return Direction(
            reduce(within, pattern, "sum"), reduce(self.matrix - within, pattern, "sum"), self.topology.gpus_per_node
        )


def count_traffic(plan: TransferPlan, topology: Topology, layers: int) -> Traffic:
    network = plan.select(plan.network)
    ranks = topology.ranks
    node = topology.node_of_rank()
    cross = node[network.src_rank] != node[network.dst_rank]
    # A hop that lands in a slot is one that its rank lacked; others land in staging and go on.
    lands = network.dst_slot >= 0
    return Traffic(
        topology=topology,
        matrix=_sum_bytes(network.src_rank * ranks + network.dst_rank, network.bytes, ranks**2).reshape(ranks, ranks),
        same_node_bytes_of_layer=_sum_bytes(network.layer, np.where(cross, 0, network.bytes), layers),
        cross_node_bytes_of_layer=_sum_bytes(network.layer, np.where(cross, network.bytes, 0), layers),
        hops={kind.name: int((plan.kind == kind).sum()) for kind in Kind},
        moved_bytes=int(network.bytes[lands].sum()),
        relay_bytes=int(network.bytes[network.kind == Kind.relay].sum()),
    )


def least_cross_node_bytes(needs: Needs, topology: Topology, expert_bytes: int) -> int:
    """What must cross between nodes whatever the plan: each expert once into each node that lacks it."""
    return int(group_needs(needs, topology.gpus_per_node).crosses.sum()) * expert_bytes


def _sum_bytes(index: Ints, nbytes: Ints, size: int) -> Ints:
    """[size]: the bytes of each index. np.bincount sums floats, which are exact up to 2^53 bytes."""
    return np.bincount(index, weights=nbytes, minlength=size).astype(np.int64)
