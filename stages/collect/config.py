"""The options of `collect`, checked, and what of them can change its result."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.collect.model_files import ModelFiles
from stages.collect.samples import PLACEMENTS, SAMPLES
from stages.collect.table import reader_of
from stages.collect.windows import FILES, STEPS, TOKENS
from stages.contract import Content
from stages.errors import BadInput
from stages.model import ModelSpec

FILE_SOURCES = ("table", "auto", "sglang", "trtllm", "vllm", "adrs", "omni")
LIVE = ("transformers", "sglang_server")
SOURCES = ("sample", "table", "synthetic", *FILE_SOURCES[1:], *LIVE)
DISTRIBUTIONS = ("lognormal", "zipf")
ON_BAD = ("error", "drop", "repair")
WINDOW_BY = (STEPS, TOKENS, FILES)
DEVICES = ("auto", "cpu", "cuda")
MOST_SEED = 2**63 - 1


@dataclass
class CollectOptions:
    """Where the loads come from. `null` leaves an option out.

    source:       sample (shipped real loads), synthetic, table (a plain file), sglang, trtllm, vllm, adrs or omni (what
                  that engine records), auto (any of these files, recognised), transformers (a model that is run), or
                  sglang_server (a server that is asked to record)
    path:         the file or folder to read; of sglang_server, the folder that it dumps into
    current:      the placement that was in place: a file of any engine's format, or a shipped one (deepseek_v3_32)
    label:        takes the windows whose label contains this text, or matches it if it has a wildcard (`*`, `?`, `[`)
    window:       adds up every so many rows of the source into one window
    window_by:    what `window` counts: steps (rows of the source), tokens, or files
    sample:       which sample: gpt_oss_20b, or layers 0, 7 and 15 of olmoe or mixtral
    on_bad:       what to do about bad rows of a file: error, drop them, or repair them (put in what the layer's good
                  rows say)
    distribution: of the popularity of synthetic experts: lognormal or zipf
    exponent:     with zipf, the n-th most popular expert gets 1 / n^exponent of what the first one gets
    sigma:        with lognormal, the standard deviation of the logarithm of the popularity
    windows:      how many synthetic windows
    tokens:       tokens in each of them; every one goes to `model.top_k` experts
    tokens_per_second: how fast the deployment is where all its GPUs have the same to do, for `replay`
    drift:        how much the popularity moves from window to window: 0 not at all, 1 to wherever
    model:        the folder of a Hugging Face model
    text:         the text file that it reads, or a list of them
    batch:        sequences in a batch; one batch is a row
    length:       tokens in a sequence
    max_tokens:   reads no more of the text than this
    device:       runs the model on cuda or cpu, or auto
    url:          of the SGLang server
    seconds:      how long to record
    requests:     for how many requests to record, which a server with --enable-metrics counts; where both are given,
                  whichever comes first
    timeout:      seconds after which a server that does not answer is given up
    """

    source: str = "sample"
    path: str | None = None
    current: str | None = None
    label: str | None = None
    window: int | None = None
    window_by: str = STEPS
    sample: str = "gpt_oss_20b"
    on_bad: str = "error"
    distribution: str = "lognormal"
    exponent: float = 1.0
    sigma: float = 1.0
    windows: int = 8
    tokens: int = 8192
    drift: float = 0.1
    tokens_per_second: float | None = None
    model: str | None = None
    text: Any = None
    batch: int = 8
    length: int = 512
    max_tokens: int | None = None
    device: str = "auto"
    url: str | None = None
    seconds: float | None = None
    requests: int | None = None
    timeout: float = 30.0

    def __post_init__(self) -> None:
        for key, allowed in (
            ("source", SOURCES), ("sample", tuple(SAMPLES)), ("on_bad", ON_BAD), ("distribution", DISTRIBUTIONS),
            ("window_by", WINDOW_BY), ("device", DEVICES),
        ):  # fmt: skip
            value = getattr(self, key)
            if value not in allowed:
                raise BadInput(f"collect.{key}={value} is not known; allowed are {', '.join(allowed)}.")
        for key in ("window", "windows", "tokens", "batch", "length", "max_tokens", "requests"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise BadInput(f"collect.{key}={value} is not possible: it must be at least 1.")
        for key in ("exponent", "sigma"):
            value = getattr(self, key)
            if not 0 <= value < float("inf"):
                raise BadInput(f"collect.{key}={value} is not possible: it must be a finite number of at least 0.")
        if self.tokens_per_second is not None and not 0 < self.tokens_per_second < float("inf"):
            raise BadInput(f"collect.tokens_per_second={self.tokens_per_second} is not possible: it must be above 0.")
        for key in ("seconds", "timeout"):
            value = getattr(self, key)
            if value is not None and not 0 < value < float("inf"):
                raise BadInput(f"collect.{key}={value} is not possible: it must be a finite number above 0.")
        if not 0 <= self.drift <= 1:
            raise BadInput(f"collect.drift={self.drift} is not possible: allowed are 0 to 1.")
        if self.window_by == TOKENS and self.window is None:
            raise BadInput("collect.window=null is not possible with collect.window_by=tokens: say how many tokens.")
        self._check_against_source()

    def _check_against_source(self) -> None:
        source = self.source
        if source in FILE_SOURCES and self.path is None:
            raise BadInput(f"collect.path=null is not possible with collect.source={source}: name the file to read.")
        if source == "table":
            reader_of(Path(str(self.path)))
        if source not in (*FILE_SOURCES, "sglang_server") and self.path is not None:
            raise BadInput(f"collect.path={self.path} is not read by collect.source={source}; use collect=table.")
        if source in ("synthetic", *LIVE) and self.label is not None:
            raise BadInput(f"collect.label={self.label} chooses nothing: {source} windows have no labels.")
        if source == "transformers":
            for key, what in (("model", "the folder of a model"), ("text", "the text files that it reads")):
                if not getattr(self, key):
                    raise BadInput(f"collect.{key}=null is not possible with collect.source={source}: name {what}.")
            self.text_files()
        if source == "sglang_server":
            self._check_server()

    def _check_server(self) -> None:
        if not self.url or not self.url.startswith(("http://", "https://")):
            raise BadInput(
                f"collect.url={self.url} is no address of a server; one like http://127.0.0.1:30000 is needed."
            )
        if self.path is None:
            raise BadInput(
                "collect.path=null is not possible with collect.source=sglang_server: name the folder it dumps into."
            )
        if self.seconds is None and self.requests is None:
            raise BadInput("collect.seconds=null and collect.requests=null: say how long the server shall record.")

    def text_files(self) -> list[Path]:
        """The files of `text`: one, or a list of them."""
        text = [self.text] if isinstance(self.text, str) else self.text
        if not isinstance(text, list) or not all(isinstance(name, str) for name in text):
            raise BadInput(
                f"collect.text={self.text} is wrong: a file or a list of files is expected, like [a.txt,b.txt]."
            )
        return [Path(name).expanduser() for name in text]

    @property
    def file(self) -> Path | None:
        """The file or folder that the source reads."""
        if self.source == "sample":
            return SAMPLES[self.sample].path
        return Path(self.path).expanduser() if self.path is not None and self.source in FILE_SOURCES else None

    @property
    def model_files(self) -> ModelFiles:
        """The files of `model`."""
        return ModelFiles(Path(str(self.model)).expanduser())

    @property
    def current_file(self) -> Path | None:
        """The file of the current placement."""
        if self.current is None:
            return None
        return PLACEMENTS[self.current] if self.current in PLACEMENTS else Path(self.current).expanduser()

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
        if not 0 <= self.seed <= MOST_SEED:
            raise BadInput(
                f"seed={self.seed} is not possible: it must not be negative."
                if self.seed < 0
                else f"seed={self.seed} is not possible: it must be at most {MOST_SEED}, which 64 bits hold."
            )

    def key_config(self) -> dict[str, Any]:
        """What can change the result: of `collect`, the options that the source uses."""
        options, model = self.collect, self.model
        used: dict[str, Any] = {"source": options.source, "window": options.window, "window_by": options.window_by}
        shape: dict[str, Any] = {"layers": model.layers, "experts": model.experts, "top_k": model.top_k}
        if options.current is not None:
            used["current"] = "file"
        if options.source == "synthetic":
            name, value = options.skew
            for key in ("distribution", "windows", "tokens", "drift"):
                used[key] = getattr(options, key)
            return {"collect": {**used, name: value}, "model": shape, "seed": self.seed}
        shape |= {"first_moe_layer": model.first_moe_layer, "dense_layers": list(model.dense_layers)}
        if options.source == "transformers":
            used |= {key: getattr(options, key) for key in ("batch", "length", "max_tokens")}
            return {"collect": used, "model": shape}
        used |= {"label": options.label, "on_bad": options.on_bad}
        if options.source == "sample":
            used["sample"] = options.sample
        if options.source == "sglang_server":
            used |= {key: getattr(options, key) for key in ("url", "seconds", "requests")}
        return {"collect": used, "model": shape}

    def external_files(self) -> dict[str, Path | Content]:
        """The files that the source reads, named by the options that choose them."""
        options = self.collect
        files: dict[str, Path | Content] = {}
        if options.file is not None:
            files["collect.sample" if options.source == "sample" else "collect.path"] = options.file
        if options.source == "transformers":
            files["collect.model"] = options.model_files
            files |= {f"collect.text[{n}]": file for n, file in enumerate(options.text_files())}
        if options.current_file is not None:
            files["collect.current"] = options.current_file
        return files

    def environment(self) -> dict[str, str]:
        """What of this machine can change what a model routes."""
        if self.collect.source != "transformers":
            return {}
        from stages.collect.live_model import environment

        return environment(self.collect.device)

    def cacheable(self) -> bool:
        """Another minute of a server's life is another result."""
        return self.collect.source != "sglang_server"
