"""What of the config can change what a solver finds."""

from __future__ import annotations

from typing import Any

from stages.model import ModelSpec
from stages.solvers.movement import cross_node_factor
from stages.solvers.options import PlaceOptions
from stages.topology import Topology


def key_of(options: PlaceOptions, model: ModelSpec, topology: Topology, seed: int) -> dict[str, Any]:
    """Layers and experts come with the loads, files count by their content, and of an expert only its bytes."""
    place: dict[str, Any] = {"algorithm": options.algorithm, "current": options.current_name}
    if options.algorithm != "file":
        place["redundant_experts"] = options.redundant_experts
    place |= options.load_rule if options.algorithm not in ("file", "contiguous") else {}
    place |= {"min_gain": options.min_gain} if options.min_gain else {}
    if options.resizes:
        place |= {"ranks": options.ranks, "current_ranks": options.current_ranks, "lost": options.lost_ranks}
    where: dict[str, Any] = {"nodes": topology.nodes, "gpus_per_node": topology.gpus_per_node}
    if options.files and (model.first_moe_layer or model.dense_layers):
        place["layers"] = {"first_moe_layer": model.first_moe_layer, "dense_layers": list(model.dense_layers)}
    if options.relabels:
        place["relabel"] = True
    if options.relabels or options.restrained:
        where["cross_node_factor"] = cross_node_factor(topology)
    key: dict[str, Any] = {"place": place, "topology": where}
    if options.algorithm == "eplb":
        key["model"] = {"num_groups": model.num_groups}
    if options.algorithm == "local_search":
        place |= options.search
        key["model"] = {"expert_bytes": model.expert_bytes}
        if options.locality != "none":
            key["model"]["num_groups"] = model.num_groups
        key["seed"] = seed
    return key
