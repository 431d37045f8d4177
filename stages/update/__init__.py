"""The update stage, and the Python API for engines.

The names of the API are imported when they are used: the pipeline imports this package without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stages.update.api import (
        ExpertLocationMetadata,
        ExpertLocationUpdater,
        create_temp_buffers,
        get_global_expert_location_metadata,
        set_global_expert_location_metadata,
        update_expert_weights_single_layer,
    )

__all__ = [
    "ExpertLocationMetadata",
    "ExpertLocationUpdater",
    "create_temp_buffers",
    "get_global_expert_location_metadata",
    "set_global_expert_location_metadata",
    "update_expert_weights_single_layer",
]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("stages.update.api"), name)
