"""Stage `collect`: how many tokens does each expert get?

moesaic run run.last=collect collect=sample collect.label=mmlu_test
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from stages import paths
from stages.collect import report
from stages.collect.config import CollectOptions, CollectStageConfig
from stages.collect.samples import SAMPLES, read_sample
from stages.collect.synthetic import generate
from stages.collect.table import read_table
from stages.collect.validate import Checked, check, require_tokens
from stages.collect.windows import choose, merge
from stages.contract import Dataset, Progress, StageResult
from stages.errors import BadInput
from stages.load import LoadStats, write_load
from stages.model import ModelSpec


def collect(config: CollectStageConfig, inputs: Mapping[str, Path], folder: Path, progress: Progress) -> StageResult:
    """Write the loads of the chosen source into `folder`. Raises `BadInput` where they are not what the model needs."""
    options, top_k = config.collect, config.model.top_k
    progress("generating loads" if options.source == "synthetic" else "reading loads", 0.0)
    checked = None if options.source == "synthetic" else _read(options, config.model)
    load = merge(checked.load if checked else _generated(options, config.model, config.seed), options.window)
    progress("writing loads", 0.5)
    files = write_load(folder, load)
    progress("drawing loads", 0.8)
    name, source = _origin(options)
    metrics = report.metrics(load, top_k)
    profile = {"windows": load.windows, "layers": load.layers, "experts": load.experts, "tokens": metrics["tokens"]}
    return StageResult(
        files=files,
        metrics=metrics,
        figures=report.draw(load),
        tags=_tags(load, options, checked),
        note=report.note(load, source, top_k, checked, options.window),
        datasets=(Dataset(name, source, paths.sha256(options.file or folder / paths.LOAD), profile),),
    )


def _read(options: CollectOptions, model: ModelSpec) -> Checked:
    """The chosen windows of a sample or a table, each layer with tokens in some of them."""
    table = options.source == "table" and options.file
    checked = choose(check(read_table(table, model) if table else read_sample(options.sample), model), options.label)
    require_tokens(checked)
    return checked


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
    if options.file is not None:
        return options.file.name, str(options.file)
    name, value = options.skew
    return (
        f"synthetic {options.distribution}",
        f"generator ({options.distribution}, {name} {value:g}, drift {options.drift:g})",
    )


def _tags(load: LoadStats, options: CollectOptions, checked: Checked | None) -> dict[str, str]:
    tags = {"source": options.source, "labels": str(len(set(load.labels)))}
    if options.source == "sample":
        tags["sample"] = options.sample
    if checked is not None and checked.dense_rows:
        tags["dense_rows_dropped"] = str(len(checked.dense_rows))
    if checked is not None and checked.empty_rows:
        tags["empty_rows_dropped"] = str(len(checked.empty_rows))
    return tags
