"""What the rules came to: the table, its metrics and figures, and the story in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stages import figures, paths
from stages.replay.config import ReplayStageConfig
from stages.replay.seconds import Floats
from stages.replay.walk import Walk

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MEGA = 1e6
SMOOTHED = 25
"""Points that a line of balancedness shows at about: in longer traces it is a running mean, so that it can be read."""


def write_walks(folder: Path, walks: Sequence[Walk], labels: Sequence[str]) -> tuple[str, ...]:
    """One row a rule and window, as Parquet with a CSV beside it; the names of both."""
    import pandas as pd

    table = pd.concat(
        [
            pd.DataFrame(
                {
                    "rule": walk.rule,
                    "window": np.arange(len(walk.balancedness)),
                    **({"label": list(labels)} if labels else {}),
                    "balancedness": walk.balancedness,
                    "placed": walk.placed,
                    "moved_slots": walk.moved_slots,
                    "moved_bytes": walk.moved_bytes,
                    "update_seconds": walk.update_seconds,
                    "window_seconds": walk.window_seconds,
                }
            )
            for walk in walks
        ],
        ignore_index=True,
    )
    with paths.atomic(folder / paths.REPLAY) as temporary:
        table.to_parquet(temporary, index=False)
    with paths.atomic(folder / paths.REPLAY_PREVIEW) as temporary:
        table.to_csv(temporary, index=False)
    return paths.REPLAY, paths.REPLAY_PREVIEW


def metrics_of(walks: Sequence[Walk]) -> dict[str, float]:
    """Of every rule: mean balancedness, moved bytes and seconds, placements, and all seconds."""
    metrics: dict[str, float] = {}
    for walk in walks:
        metrics |= {
            f"balancedness_{walk.rule}": float(walk.balancedness.mean()),
            f"placements_{walk.rule}": float(walk.placed.sum()),
            f"moved_bytes_{walk.rule}": float(walk.moved_bytes.sum()),
            f"update_seconds_{walk.rule}": float(walk.update_seconds.sum()),
            f"seconds_{walk.rule}": float(walk.seconds.sum()),
        }
    return metrics


def quickest(walks: Sequence[Walk]) -> Walk:
    """The rule with the fewest seconds, the first of equal ones."""
    return min(walks, key=lambda walk: float(walk.seconds.sum()))


def baseline(walks: Sequence[Walk]) -> Walk:
    """What the others are held against: never, or the first rule where that was not asked for."""
    return next((walk for walk in walks if walk.rule == "never"), walks[0])


def draw(walks: Sequence[Walk]) -> dict[str, Figure]:
    """Over the windows: balancedness, moved bytes so far, and seconds saved so far against the baseline."""
    base = baseline(walks)
    width = max(1, len(base.balancedness) // SMOOTHED)
    return {
        "balancedness": figures.lines(
            {walk.rule: _running_mean(walk.balancedness, width) for walk in walks},
            "Balancedness over time" + (f" (mean of {width} windows)" if width > 1 else ""), "window", "balancedness",
        ),
        "moved_bytes": figures.lines(
            {walk.rule: np.cumsum(walk.moved_bytes) / MEGA for walk in walks}, "Moved bytes so far", "window", "MB"
        ),
        "seconds_saved": figures.lines(
            {walk.rule: np.cumsum(base.seconds - walk.seconds) for walk in walks},
            f"Seconds saved so far against `{base.rule}`, moves paid", "window", "s",
        ),
    }  # fmt: skip


def note(walks: Sequence[Walk], config: ReplayStageConfig, cut: bool) -> str:
    """The story in Markdown."""
    best, base = quickest(walks), baseline(walks)
    saved = float((base.seconds - best.seconds).sum())
    rows = [
        f"| {walk.rule} | {walk.balancedness.mean():.4f} | {walk.placed.sum()} | {walk.moved_bytes.sum() / MEGA:,.1f} | "
        f"{walk.update_seconds.sum():.4g} | {walk.seconds.sum():.5g} |"
        for walk in walks
    ]
    lines = [
        (
            f"**`{best.rule}` is the quickest**: {best.seconds.sum():.5g} s for {len(best.seconds)} windows, "
            f"{saved:.4g} s less than `{base.rule}`."
        ),
        "",
        "| rule | balancedness | placements | moved MB | seconds of moves | seconds in all |",
        "|---|---:|---:|---:|---:|---:|",
        *rows,
        "",
        (
            f"- at {config.tokens_per_second:g} tokens a second where all GPUs have the same to do "
            f"(collect.tokens_per_second), with {config.model.moe_time_fraction:g} of a step governed by expert balance "
            "(model.moe_time_fraction)"
        ),
        (
            f"- placed by `{config.place.algorithm}` from {_history(config.replay.history)}, each window unseen when it was "
            "placed for; moves take what the links of the busiest GPU take"
        ),
    ]
    if cut:
        lines.append(f"- some searches were cut by the clock (place.seconds={config.place.seconds:g})")
    return "\n".join(lines) + "\n"


def _history(windows: int | None) -> str:
    return "all windows before" if windows is None else f"the last {windows} windows before"


def _running_mean(values: Floats, width: int) -> Floats:
    """[T]: the mean of each value and the `width` - 1 before it, of fewer at the beginning."""
    total = np.cumsum(np.concatenate([[0.0], values]))
    end = np.arange(1, len(values) + 1)
    begin = np.maximum(0, end - width)
    return (total[end] - total[begin]) / (end - begin)
