"""The maps that are given rather than computed: the current placement, and a placement from a file."""

from __future__ import annotations

from pathlib import Path

from stages.errors import BadInput
from stages.expert_map import ExpertMap, check_map, contiguous_map, read_map
from stages.load import LoadStats
from stages.place.config import CONTIGUOUS, LOADS, PlaceOptions


def placement_file(options: PlaceOptions, load: LoadStats, ranks: int) -> ExpertMap:
    """[L, P]: the map in `place.path`, whose P may be any that fits the ranks."""
    assert options.path is not None
    return _checked(read_map(Path(options.path), "place.path"), f"place.path={options.path}", load, ranks)


def current_map(options: PlaceOptions, load: LoadStats, slots: int, ranks: int) -> ExpertMap:
    """[L, P]: what the slots hold now. It must have `slots` slots a layer, as the new map has."""
    if options.current == CONTIGUOUS:
        return contiguous_map(load.layers, load.experts, slots)
    name = f"place.current={options.current}"
    if options.current_file is not None:
        found = read_map(Path(options.current_file), "place.current")
    elif load.current is not None:
        found = load.current
    else:
        raise BadInput(
            f"place.current={LOADS}, but no placement came with the loads; allowed are {CONTIGUOUS} and a placement file."
        )
    found = _checked(found, name, load, ranks)
    if found.shape[1] != slots:
        remedy = (
            f"choose a file in place.path with {found.shape[1]}"
            if options.algorithm == "file"
            else f"set place.redundant_experts={found.shape[1] - load.experts}"
        )
        raise BadInput(f"{name} has {found.shape[1]} slots a layer and the new placement {slots}: {remedy}.")
    return found


def _checked(found: ExpertMap, name: str, load: LoadStats, ranks: int) -> ExpertMap:
    """`found`, unless its layers, slots or experts do not fit."""
    layers, slots = found.shape
    if layers != load.layers:
        raise BadInput(f"{name} has {layers} layers, but the loads have {load.layers}.")
    if slots % ranks:
        raise BadInput(
            f"{name} has {slots} slots a layer, which do not divide evenly over the {ranks} ranks of the topology."
        )
    check_map(found, load.experts, ranks, name)
    return found
