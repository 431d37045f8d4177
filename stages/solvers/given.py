"""The maps that are given rather than computed: the current placement, and a placement from a file."""

from __future__ import annotations

from pathlib import Path

from stages.errors import BadInput
from stages.expert_map import ExpertMap, check_map, contiguous_map, read_map, replica_counts, slots_for
from stages.load import LoadStats
from stages.model import ModelSpec
from stages.resize import framed, without_ranks
from stages.solvers.options import CONTIGUOUS, LOADS, PlaceOptions
from stages.solvers.slots import Ints, contiguous_within


def placement_file(options: PlaceOptions, load: LoadStats, ranks: int, model: ModelSpec) -> ExpertMap:
    """[L, P]: the map in `place.path`, whose P may be any that fits the ranks."""
    assert options.path is not None
    found = _of_moe_layers(read_map(Path(options.path), "place.path"), load, model)
    return _checked(found, f"place.path={options.path}", load, ranks)


def current_file_or_loads(options: PlaceOptions, load: LoadStats, ranks: int, model: ModelSpec) -> ExpertMap | None:
    """[L, P]: what the slots hold now by a file or by the loads; None where `place.current` is contiguous."""
    if options.current == CONTIGUOUS:
        return None
    if options.current_file is not None:
        found = _of_moe_layers(read_map(Path(options.current_file), "place.current"), load, model)
    elif load.current is not None:
        found = load.current
    else:
        raise BadInput(
            f"place.current={LOADS}, but no placement came with the loads; allowed are {CONTIGUOUS} and a placement file."
        )
    return _checked(found, f"place.current={options.current}", load, ranks)


def resized_current(options: PlaceOptions, load: LoadStats, ranks: int, model: ModelSpec) -> tuple[ExpertMap, int]:
    """[L, P'] and its ranks: what the GPUs that are left hold now, over `place.current_ranks` less `place.lost_ranks`;
    `ranks` are those of the topology."""
    had = options.current_ranks or ranks
    lost = sorted(set(options.lost_ranks))
    if lost and not 0 <= lost[0] <= lost[-1] < had:
        raise BadInput(
            f"place.lost_ranks={options.lost_ranks} are not all among the {had} ranks of the current placement."
        )
    found = current_file_or_loads(options, load, had, model)
    if found is None:
        found = contiguous_map(load.layers, load.experts, slots_for(load.experts, options.redundant_experts, had))
    close_up = had > ranks
    left = had - len(lost) if close_up else had
    if not 1 <= left <= ranks:
        raise BadInput(
            f"Of the current placement {left} ranks are left and the topology has {ranks}: it must have room for all that "
            "hold experts, also for those that shall hold none (place.ranks)."
        )
    return without_ranks(found, had, lost, close_up=close_up), left


def start_from(current: ExpertMap, of_ranks: int, experts: int, capacity: Ints) -> ExpertMap:
    """[L, P]: as much of `current` as the slots of the new placement have room for, where that is every expert; else
    the contiguous map in them."""
    found = framed(current, of_ranks, capacity.shape[1], int(capacity.max()))
    return found if (replica_counts(found, experts) > 0).all() else contiguous_within(capacity, experts)


def current_map(given: ExpertMap | None, options: PlaceOptions, experts: int, capacity: Ints) -> ExpertMap:
    """[L, P]: `given`, which must have as many slots as the new map, or the contiguous map in the slots there are."""
    slots = capacity.shape[1] * int(capacity.max())
    if given is None:
        return contiguous_within(capacity, experts)
    if given.shape[1] != slots:
        remedy = (
            f"choose a file in place.path with {given.shape[1]}"
            if options.algorithm == "file"
            else f"set place.redundant_experts={given.shape[1] - experts}"
            if options.redundancy == "per_layer"
            else "set place.redundancy=current to keep those it has"
        )
        raise BadInput(
            f"place.current={options.current} has {given.shape[1]} slots a layer and the new placement {slots}: {remedy}."
        )
    return given


def _of_moe_layers(found: ExpertMap, load: LoadStats, model: ModelSpec) -> ExpertMap:
    """`found` without the dense layers of `model`, for which engines' files have rows too (SGLang's)."""
    if len(found) == load.layers or len(found) != model.hidden_layers(load.layers):
        return found
    return found[model.layer_ids(load.layers)]


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
