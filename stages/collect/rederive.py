"""The audit of collected loads: their numbers again, and the loads themselves where nothing but the config makes them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from stages import paths
from stages.collect import report
from stages.collect.config import CollectStageConfig
from stages.contract import silent
from stages.load import read_load, write_load
from stages.rederived import Rederived


def rederive(
    config: CollectStageConfig, inputs: Mapping[str, Path], folder: Path, metrics: Mapping[str, float]
) -> Rederived:
    """From the artifact, and for generated and shipped loads from the config alone."""
    out = Rederived(metrics)
    load = read_load(folder / paths.LOAD)
    numbers = report.metrics(load, config.model.top_k or 1)
    if config.model.top_k is None:
        del numbers["tokens"]  # the source knew how many experts a token goes to
    out.metrics_of(numbers)
    out.same_files(folder, lambda target: write_load(target, load))
    out.done.append(f"the numbers of {load.windows:,} windows")
    if config.collect.source in ("synthetic", "sample"):
        from stages.collect.stage import loads_of

        again = loads_of(config, folder, silent)
        same = load.logical_count.shape == again.logical_count.shape
        out.must(
            same and bool(np.array_equal(load.logical_count, again.logical_count)),
            f"{paths.LOAD} holds other counts than the config makes ({config.collect.source})",
        )
        out.done.append(f"the loads themselves ({config.collect.source}), made anew")
    return out
