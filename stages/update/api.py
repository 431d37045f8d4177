"""The Python API for engines: move the expert weights of live layers from one map to another.

    set_global_expert_location_metadata(ExpertLocationMetadata(physical_to_logical_map, ep_size))
    updater = ExpertLocationUpdater()
    updater.update(routed_experts_weights_of_layer, new_expert_location_metadata, nnodes, rank)

Wherever anything crosses between ranks, the default process group of `torch.distributed` must exist, its ranks those that
the slots divide over, and with NCCL every rank must have joined a collective of it before (NCCL connects then; a rank
without transfers in the first layer would be missed). All ranks call with the same maps and layers. The pipelined
executor returns when everything is committed; what goes layer by layer on GPUs is queued on the current stream and not
waited for.
"""

from __future__ import annotations

from stages.update.layer_update import create_temp_buffers, update_expert_weights_single_layer
from stages.update.metadata import (
    ExpertLocationMetadata,
    get_global_expert_location_metadata,
    set_global_expert_location_metadata,
)
from stages.update.updater import ExpertLocationUpdater

__all__ = [
    "ExpertLocationMetadata",
    "ExpertLocationUpdater",
    "create_temp_buffers",
    "get_global_expert_location_metadata",
    "set_global_expert_location_metadata",
    "update_expert_weights_single_layer",
]
