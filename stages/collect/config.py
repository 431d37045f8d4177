"""The options of `collect`, checked, and what of them can change its result."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.collect.samples import SAMPLES
from stages.collect.table import reader_of
from stages.errors import BadInput
from stages.model import ModelSpec

SOURCES = ("sample", "table", "synthetic")
DISTRIBUTIONS = ("lognormal", "zipf")
ON_BAD = ("error",)


@dataclass
class CollectOptions:
    """Where the loads come from. `null` leaves an option out.

    source:       sample (shipped real loads), table (the file `path`), or synthetic
    path:         of a file that ends in .npz, .npy, .safetensors, .json, .csv or .parquet
    label:        takes the windows whose label contains this text, or matches it if it has a wildcard (`*`, `?`, `[`)
    window:       adds up every so many rows of the source into one window
    sample:       which sample: gpt_oss_20b, or layers 0, 7 and 15 of olmoe or mixtral
    on_bad:       what to do about bad input
    distribution: of the popularity of synthetic experts: lognormal (`sigma`) or zipf (`exponent`)
    windows, tokens: how many synthetic windows, and tokens in each (every one goes to `model.top_k` experts)
    tokens_per_second: how fast the deployment is where all its GPUs have the same to do, for `replay`
    drift:        how much the popularity moves from window to window: 0 not at all, 1 to wherever
    """

    source: str = "sample"
    path: str | None = None
    label: str | None = None
    window: int | None = None
    sample: str = "gpt_oss_20b"
    on_bad: str = "error"
    distribution: str = "lognormal"
    exponent: float = 1.0
    sigma: float = 1.0
    windows: int = 8
    tokens: int = 8192
    drift: float = 0.1
    tokens_per_second: float | None = None

    def __post_init__(self) -> None:
        for key, allowed in (
            ("source", SOURCES), ("sample", tuple(SAMPLES)), ("on_bad", ON_BAD), ("distribution", DISTRIBUTIONS),
        ):  # fmt: skip
            value = getattr(self, key)
            if value not in allowed:
                raise BadInput(f"collect.{key}={value} is not known; allowed are {', '.join(allowed)}.")
        for key in ("window", "windows", "tokens"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise BadInput(f"collect.{key}={value} is not possible: it must be at least 1.")
        for key in ("exponent", "sigma"):
            value = getattr(self, key)
            if not 0 <= value < float("inf"):
                raise BadInput(f"collect.{key}={value} is not possible: it must be a finite number of at least 0.")
        if self.tokens_per_second is not None and not 0 < self.tokens_per_second < float("inf"):
            raise BadInput(f"collect.tokens_per_second={self.tokens_per_second} is not possible: it must be above 0.")
        if not 0 <= self.drift <= 1:
            raise BadInput(f"collect.drift={self.drift} is not possible: allowed are 0 to 1.")
        self._check_against_source()

    def _check_against_source(self) -> None:
        if self.source == "table":
            if self.path is None:
                raise BadInput("collect.path=null is not possible with collect.source=table: name the file to read.")
            reader_of(Path(self.path))
        elif self.path is not None:
            raise BadInput(f"collect.path={self.path} is not read by collect.source={self.source}; use collect=table.")
        if self.source == "synthetic" and self.label is not None:
            raise BadInput(f"collect.label={self.label} chooses nothing: synthetic windows have no labels.")

    @property
    def file(self) -> Path | None:
        """The file that the source reads."""
        if self.source == "sample":
            return SAMPLES[self.sample].path
        return Path(self.path).expanduser() if self.path is not None else None

    @property
    def skew(self) -> tuple[str, float]:
        """Name and value of the option that says how skewed `distribution` is."""
        return ("exponent", self.exponent) if self.distribution == "zipf" else ("sigma", self.sigma)


@dataclass
class CollectStageConfig:
    """What the stage gets: its options, the model, and the seed of synthetic loads."""

    collect: CollectOptions
    model: ModelSpec
    seed: int

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise BadInput(f"seed={self.seed} is not possible: it must not be negative.")

    def key_config(self) -> dict[str, Any]:
        """What can change the result: of `collect`, the options that the source uses."""
        options, model = self.collect, self.model
        used: dict[str, Any] = {"source": options.source, "window": options.window}
        shape: dict[str, Any] = {"layers": model.layers, "experts": model.experts, "top_k": model.top_k}
        if options.source == "synthetic":
            name, value = options.skew
            for key in ("distribution", "windows", "tokens", "drift"):
                used[key] = getattr(options, key)
            return {"collect": {**used, name: value}, "model": shape, "seed": self.seed}
        used |= {"label": options.label, "on_bad": options.on_bad}
        if options.source == "sample":
            used["sample"] = options.sample
        shape |= {"first_moe_layer": model.first_moe_layer, "dense_layers": list(model.dense_layers)}
        return {"collect": used, "model": shape}

    def external_files(self) -> dict[str, Path]:
        """The file that the source reads, named by the option that chooses it."""
        file = self.collect.file
        return {} if file is None else {"collect.path" if self.collect.source == "table" else "collect.sample": file}
