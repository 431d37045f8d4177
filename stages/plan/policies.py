"""The policies by name: from what ranks lack to a scheduled plan."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stages.direct import direct_rows
from stages.needs import Needs
from stages.plan.relay import relay_hops, relay_rows
from stages.plan.schedule import RoundCount, count_relay_rounds, direct_rounds, fabric_width, relay_rounds
from stages.topology import Topology
from stages.transfers import TransferPlan


@dataclass(frozen=True)
class Scheduled:
    """A plan with its rounds, and how few rounds each layer could have."""

    transfers: TransferPlan
    rounds: RoundCount


def schedule(
    policy: str, needs: Needs, topology: Topology, layers: int, expert_bytes: int, tensors: int, group_ops: int
) -> Scheduled:
    """By policy `direct` or `relay`, of needs that are all held. `group_ops`: see `PlanOptions`."""
    if policy == "direct":
        transfers = direct_rounds(direct_rows(needs, topology.gpus_per_node, expert_bytes), layers, topology.ranks)
        rounds = np.zeros(layers, dtype=np.int64)
        network = transfers.network
        np.maximum.at(rounds, transfers.layer[network], transfers.round[network] + 1)
        return Scheduled(transfers, RoundCount(rounds, rounds))
    hops = relay_hops(needs, topology, expert_bytes)
    layer = hops.item // needs.experts
    width = fabric_width(topology, tensors, group_ops)
    when = relay_rounds(hops, layer, layers, topology.ranks, width)
    rounds_of = count_relay_rounds(hops, layer, when, layers, topology.ranks, width)
    return Scheduled(relay_rows(needs, hops, when, expert_bytes), rounds_of)
