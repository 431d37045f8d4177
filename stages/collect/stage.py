"""Stage `collect`: how many tokens does each expert get?

moesaic run run.last=collect collect=sample collect.label=mmlu_test
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from stages import paths
from stages.collect import report
from stages.collect.config import CollectOptions, CollectStageConfig
from stages.collect.dump import Dump
from stages.collect.samples import SAMPLES, read_sample
from stages.collect.sources import open_source
from stages.collect.synthetic import generate
from stages.collect.validate import Checked, Wanted, check
from stages.collect.windows import FILES, TOKENS, merged
from stages.contract import Dataset, Progress, StageResult
from stages.engine_formats import LayerNumbers, read_stored
from stages.errors import BadInput
from stages.expert_map import ExpertMap, check_map
from stages.load import LoadStats, write_load
from stages.model import ModelSpec

FETCHED = "dump"
"""The folder, below the stage's own, of what a server dumped: nothing else can tell later what it said."""


def collect(config: CollectStageConfig, inputs: Mapping[str, Path], folder: Path, progress: Progress) -> StageResult:
    """Write the loads of the chosen source into `folder`. Raises `BadInput` where they are not what the model needs."""
    options = config.collect
    progress("generating loads" if options.source == "synthetic" else "reading loads", 0.0)
    load, checked, top_k = _loads(
        config, folder, lambda message, fraction, *counts: progress(message, fraction * 0.7, *counts)
    )
    progress("writing loads", 0.7)
    fetched = sorted(file.relative_to(folder).as_posix() for file in (folder / FETCHED).glob("*"))
    files = (*write_load(folder, load), *fetched)
    progress("drawing loads", 0.9)
    metrics = report.metrics(load, top_k)
    dataset = _dataset(options, load, metrics["tokens"], folder)
    return StageResult(
        files=files,
        metrics=metrics,
        figures=report.draw(load),
        tags=_tags(load, options, checked),
        note=report.note(load, dataset.source, top_k, checked, _merged(options)),
        datasets=(dataset,),
    )


def _dataset(options: CollectOptions, load: LoadStats, tokens: float, folder: Path) -> Dataset:
    """What the loads are of. Of one file or model runs take different windows and labels, and the store has one profile
    of it for all of them: there it has none."""
    name, source = _origin(options)
    if options.source == "transformers":
        return Dataset(name, source, options.model_files.sha256())
    if options.file is not None:
        return Dataset(name, source, paths.sha256(options.file))
    profile = {"windows": load.windows, "layers": load.layers, "experts": load.experts, "tokens": tokens}
    return Dataset(name, source, paths.sha256(folder / paths.LOAD), profile)


def loads_of(config: CollectStageConfig, folder: Path, progress: Progress) -> LoadStats:
    """What the source of `config` gives; `folder` is for what a server is asked for."""
    return _loads(config, folder, progress)[0]


def _loads(
    config: CollectStageConfig, folder: Path, progress: Progress
) -> tuple[LoadStats, Checked | None, int | None]:
    """The loads, where they were read from a file what was left out of it, and experts per token if that is known."""
    options, model = config.collect, config.model
    current = _current(options, model)
    wanted = Wanted(options.on_bad, options.label, options.window, options.window_by)
    checked: Checked | None = None
    top_k = model.top_k
    if options.source == "synthetic":
        load = merged(_generated(options, model, config.seed), options.window_by, options.window, model.top_k)
    elif options.source == "transformers":
        from stages.collect.live_model import run_model

        load, top_k = run_model(options, model, progress)
    else:
        checked = check(_dump(options, model, current, folder, progress), model, wanted, progress)
        load, top_k = checked.load, checked.top_k
    if current is not None:
        check_map(current, load.experts, 1, f"collect.current={options.current}")
        if len(current) != load.layers:
            raise BadInput(
                f"collect.current={options.current} has {len(current)} layers, but the loads have {load.layers}."
            )
        load = replace(load, current=current)
    return load, checked, top_k


def _dump(
    options: CollectOptions, model: ModelSpec, current: ExpertMap | None, folder: Path, progress: Progress
) -> Dump:
    strict = options.on_bad == "error"
    if options.source == "sample":
        return read_sample(options.sample)
    if options.source == "sglang_server":
        from stages.collect.live_server import record

        return open_source("sglang", record(options, folder / FETCHED, progress), model, current, strict=strict)
    assert options.file is not None
    return open_source(options.source, options.file, model, current, strict=strict)


def _current(options: CollectOptions, model: ModelSpec) -> ExpertMap | None:
    """[L, P]: the placement that `collect.current` names."""
    if options.current_file is None:
        return None
    name = f"collect.current={options.current}"
    numbers = LayerNumbers(model.first_moe_layer, tuple(model.dense_layers))
    return read_stored(options.current_file, "collect.current").moe_rows(model.layers, numbers, name)


def _generated(options: CollectOptions, model: ModelSpec, seed: int) -> LoadStats:
    for key in ("layers", "experts"):
        if getattr(model, key) is None:
            raise BadInput(
                f"model.{key}=null is not possible with collect.source=synthetic: set it, or choose a model."
            )
    assert model.layers is not None
    assert model.experts is not None
    return LoadStats(
        generate(
            distribution=options.distribution,
            skew=options.skew[1],
            layers=model.layers,
            experts=model.experts,
            top_k=model.top_k or 1,
            windows=options.windows,
            tokens=options.tokens,
            drift=options.drift,
            seed=seed,
        )
    )


def _origin(options: CollectOptions) -> tuple[str, str]:
    """Name of the data set, and where it comes from."""
    if options.source == "sample":
        return options.sample, f"{SAMPLES[options.sample].origin}, {SAMPLES[options.sample].file}"
    if options.source == "transformers":
        texts = ", ".join(file.name for file in options.text_files())
        return f"{Path(str(options.model)).name} on {texts}", f"{options.model} reading {texts}"
    if options.source == "sglang_server":
        return "SGLang server", f"{options.url}"
    if options.file is not None:
        return options.file.name, str(options.file)
    name, value = options.skew
    return (
        f"synthetic {options.distribution}",
        f"generator ({options.distribution}, {name} {value:g}, drift {options.drift:g})",
    )


def _merged(options: CollectOptions) -> str | None:
    """How windows were made of rows, in words."""
    if options.window_by == TOKENS:
        return f"Rows of about {options.window:,} tokens make one window"
    if options.window_by == FILES:
        return f"Every {options.window} files make one window" if (options.window or 1) > 1 else "A file is one window"
    if (options.window or 1) > 1:
        return f"Every {options.window} rows of the source make one window (the last may have fewer)"
    return None


def _tags(load: LoadStats, options: CollectOptions, checked: Checked | None) -> dict[str, str]:
    tags = {"source": options.source, "labels": str(len(set(load.labels)))}
    if options.source == "sample":
        tags["sample"] = options.sample
    if options.current is not None:
        tags["current"] = options.current
    if checked is not None:
        for name, number in (
            ("dense_rows_dropped", len(checked.dense_rows)), ("empty_rows_dropped", len(checked.empty_rows)),
            ("repeated_rows_dropped", checked.repeated_rows),
            (f"bad_counts_{'repaired' if checked.on_bad == 'repair' else 'dropped'}", checked.bad_cells),
        ):  # fmt: skip
            if number:
                tags[name] = str(number)
    return tags
