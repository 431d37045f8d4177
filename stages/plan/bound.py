"""The least time in which any plan can bring the ranks what they lack, relays of every sort allowed.

Latency and order are left out. A rank receives what it lacks over both its links at once at best; so does a rank send
what it alone holds. What a node lacks enters it at least once, what it alone holds leaves it at least once where
another node lacks it, over the node's link.
"""

from __future__ import annotations

import numpy as np

from stages.needs import Needs
from stages.plan.groups import group_needs
from stages.topology import Topology


def lower_bound_seconds(needs: Needs, topology: Topology, expert_bytes: int) -> float:
    """Of needs that are all held."""
    if not len(needs.item):
        return 0.0
    holders, nodes, gpus = needs.holders, topology.nodes, topology.gpus_per_node
    groups = group_needs(needs, gpus)
    links = topology.links
    both = links.within_node.gb_per_s + (links.between_nodes.gb_per_s if nodes > 1 else 0.0)

    wanted = np.unique(needs.item)
    begin, end = (np.searchsorted(holders.item, wanted, side) for side in ("left", "right"))
    of_one_rank = holders.rank[begin[end - begin == 1]]
    crossing = np.unique(groups.item[groups.crosses])
    begin, end = (np.searchsorted(holders.item, crossing, side) for side in ("left", "right"))
    first, last = holders.rank[begin] // gpus, holders.rank[end - 1] // gpus
    of_one_node = first[first == last]

    hops_of_rank = max(np.bincount(needs.rank, minlength=1).max(), np.bincount(of_one_rank, minlength=1).max(initial=0))
    hops_of_node = max(
        np.bincount(groups.node[groups.crosses], minlength=1).max(), np.bincount(of_one_node, minlength=1).max()
    )
    return float(expert_bytes / 1e9 * max(hops_of_rank / both, hops_of_node / topology.node_gb_per_s))
