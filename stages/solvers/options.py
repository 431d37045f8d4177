"""The config group `place`: which solver computes placements, from which loads, and what it may change."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stages.errors import BadInput
from stages.solvers.own import is_own, source_of

ALGORITHMS = ("contiguous", "eplb", "file", "local_search")
CONTIGUOUS, LOADS = "contiguous", "loads"
LOAD_RULES = ("mean", "last", "quantile", "ewma")
REDUNDANCIES = ("per_layer", "total", "current")
OBJECTIVES = ("balance", "movement")
LOCALITIES = ("none", "node_groups")
SEARCH_ONLY = {
    "objective": None, "max_moved_bytes": None, "max_moved_slots": None, "target_balancedness": None,
    "redundancy": "per_layer", "locality": "none",
}  # fmt: skip
"""Options of `local_search` that no other algorithm can follow, with what leaves them out."""


@dataclass
class PlaceOptions:
    """`null` leaves an option out.

    algorithm:           local_search (the best balance found), eplb (DeepSeek's), contiguous, file, or a function of
                         your own as module.function
    path:                the placement, for `file`
    redundant_experts:   slots beyond the experts, rounded up so that slots divide over the ranks; a file brings its own
    redundancy:          those slots are `per_layer`, or a `total` spent on the layers where they help most, or as many
                         in each layer and rank as the `current` placement fills
    current:             what is in place: contiguous (slot s holds expert s mod E), loads (the map that came with the
                         loads), or a placement file
    ranks:               GPUs of the topology to place on, the first so many; null: all
    current_ranks:       GPUs that the current placement is on, the first so many; null: all of the topology
    lost_ranks:          of those, the ones whose weights are gone. Where the current placement had more GPUs than the
                         topology, the others are numbered anew, in order; else new GPUs stand in their places
    load:                what windows count: all alike (mean), the last, a quantile of each expert's, or the later the
                         more (ewma)
    load_quantile:       the quantile that counts with load=quantile, 0 to 1
    load_half_life:      with load=ewma, the weight of a window halves every so many windows
    objective:           balance (the best under the caps on moved bytes or slots, if there are any) or movement (the
                         least that reaches target_balancedness); null: movement exactly where there is a target
    target_balancedness: the balancedness to reach with the least movement, 0 to 1
    max_moved_bytes:     the most bytes that ranks may receive for the new placement
    max_moved_slots:     the most slots whose expert their rank does not hold yet
    min_gain:            a layer whose balancedness would gain less keeps its current placement
    relabel:             which rank gets which share of a new placement is chosen so that little moves; null: in
                         local_search alone
    locality:            node_groups keeps each expert group of the model (model.num_groups) within one node
    seconds:             when the search ends at the latest, for all layers together
    max_steps:           attempts in each layer; null: the search ends where attempts no longer help
    """

    algorithm: str = "local_search"
    path: str | None = None
    redundant_experts: int = 0
    redundancy: str = "per_layer"
    current: str = CONTIGUOUS
    ranks: int | None = None
    current_ranks: int | None = None
    lost_ranks: list[int] = field(default_factory=list)
    load: str = "mean"
    load_quantile: float = 0.9
    load_half_life: float = 4.0
    objective: str | None = None
    target_balancedness: float | None = None
    max_moved_bytes: int | None = None
    max_moved_slots: int | None = None
    min_gain: float = 0.0
    relabel: bool | None = None
    locality: str = "none"
    seconds: float = 30.0
    max_steps: int | None = None

    def __post_init__(self) -> None:
        for key, allowed in (
            ("algorithm", ALGORITHMS), ("load", LOAD_RULES), ("redundancy", REDUNDANCIES), ("locality", LOCALITIES),
            ("objective", (*OBJECTIVES, None)),
        ):  # fmt: skip
            value = getattr(self, key)
            if value not in allowed and not (key == "algorithm" and is_own(value)):
                names = ", ".join(sorted(str(name) for name in allowed if name))
                raise BadInput(f"place.{key}={value} is not known; allowed are {names}.")
        if self.algorithm == "file" and not self.path:
            raise BadInput("place.algorithm=file needs place.path: a placement file (.json, .safetensors, .npy, .npz).")
        if not self.current:
            raise BadInput("place.current is empty; allowed are contiguous, loads and the name of a placement file.")
        self._check_numbers()
        self._check_together()

    def _check_numbers(self) -> None:
        for key in ("redundant_experts", "max_moved_bytes", "max_moved_slots", "min_gain"):
            value = getattr(self, key)
            if value is not None and not value >= 0:
                raise BadInput(f"place.{key}={value} must not be negative.")
        for key in ("ranks", "current_ranks"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise BadInput(f"place.{key}={value} is not possible: it must be at least 1.")
        if self.max_steps is not None and self.max_steps < 1:
            raise BadInput(f"place.max_steps={self.max_steps} is not possible: it must be at least 1.")
        for key in ("seconds", "load_half_life"):
            if not getattr(self, key) > 0:
                raise BadInput(f"place.{key}={getattr(self, key)} is not possible: it must be above 0.")
        for key in ("load_quantile", "target_balancedness", "min_gain"):
            value = getattr(self, key)
            if value is not None and not 0 <= value <= 1:
                raise BadInput(f"place.{key}={value} is not possible: allowed are 0 to 1.")

    def _check_together(self) -> None:
        if self.algorithm != "local_search":
            for key, unset in SEARCH_ONLY.items():
                value = getattr(self, key)
                if value != unset:
                    raise BadInput(
                        f"place.{key}={value} is for place.algorithm=local_search; {self.algorithm} cannot follow it."
                    )
        if self.objective == "movement" and self.target_balancedness is None:
            raise BadInput("place.objective=movement needs place.target_balancedness: the balancedness to reach.")
        if self.objective == "balance" and self.target_balancedness is not None:
            raise BadInput(
                f"place.target_balancedness={self.target_balancedness} is for place.objective=movement; "
                "place.objective=balance seeks the best there is."
            )

    @property
    def resizes(self) -> bool:
        """Whether the current and the new placement may be on other ranks, or have other slots."""
        return self.ranks is not None or self.current_ranks is not None or bool(self.lost_ranks)

    @property
    def current_file(self) -> str | None:
        """The file that holds the current placement, if one does."""
        return None if self.current in (CONTIGUOUS, LOADS) else self.current

    @property
    def files(self) -> dict[str, Path]:
        """The files that are read, by the key that names each."""
        files: dict[str, Path] = {}
        if is_own(self.algorithm):
            files["place.algorithm"] = source_of(self.algorithm)
        if self.algorithm == "file" and self.path:
            files["place.path"] = Path(self.path)
        if self.current_file:
            files["place.current"] = Path(self.current_file)
        return files

    @property
    def current_name(self) -> str:
        """Where the current placement comes from, without saying which file."""
        return "file" if self.current_file else self.current

    @property
    def load_rule(self) -> dict[str, Any]:
        """How windows count, where that is not the default, with the number it takes."""
        if self.load == "mean":
            return {}
        numbers = {"quantile": {"load_quantile": self.load_quantile}, "ewma": {"load_half_life": self.load_half_life}}
        return {"load": self.load, **numbers.get(self.load, {})}

    @property
    def search(self) -> dict[str, Any]:
        """What `local_search` alone follows."""
        names = (
            "redundancy",
            "target_balancedness",
            "max_moved_bytes",
            "max_moved_slots",
            "locality",
            "seconds",
            "max_steps",
        )
        return {name: getattr(self, name) for name in names}

    @property
    def relabels(self) -> bool:
        return self.algorithm == "local_search" if self.relabel is None else self.relabel

    @property
    def aims_at_movement(self) -> bool:
        """Whether the least movement is sought rather than the best balance."""
        return self.target_balancedness is not None

    @property
    def restrained(self) -> bool:
        """Whether movement counts at all in what `local_search` seeks."""
        return not (self.target_balancedness is self.max_moved_bytes is self.max_moved_slots is None)
