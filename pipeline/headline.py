"""The numbers that matter most of a run, in words and units that people read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pipeline.summary import Summary


@dataclass(frozen=True)
class Row:
    """A line of the result table, shown if all its metrics are there."""

    label: str
    stage: str
    metrics: tuple[str, ...]
    text: Callable[..., str]


def bytes_text(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.4g} {unit}"
        count /= 1000
    return f"{count:.4g} TB"


PARTS = ("pack", "network", "hash", "commit", "wait")

ROWS = (
    Row("Tokens observed", "collect", ("tokens", "windows"), lambda t, w: f"{t:,.0f} in {w:,.0f} windows"),
    Row("Balancedness before", "place", ("balancedness_before",), lambda b: f"{b:.4f}"),
    Row(
        "Balancedness after", "place", ("balancedness", "balancedness_worst_layer"),
        lambda b, w: f"{b:.4f}  (worst layer {w:.4f}; 1 is perfect)",
    ),
    Row("Room left", "place", ("optimality_gap",), lambda g: f"at most {g:.2%} in any layer (proven)"),
    Row("On unseen windows", "place", ("balancedness_next_window",), lambda b: f"{b:.4f}"),
    Row("Slots that change GPU", "place", ("moved_slots",), lambda m: f"{m:,.0f}"),
    Row("Bytes within nodes", "plan", ("same_node_bytes",), bytes_text),
    Row("Bytes across nodes", "plan", ("cross_node_bytes",), bytes_text),
    Row("Predicted time", "plan", ("predicted_seconds",), lambda s: f"{s:.3g} s"),
    Row(
        "Update time", "update", ("update_seconds", "effective_gb_per_s", "link_gb_per_s"),
        lambda s, e, l: f"{s:.3g} s  ({e:.3g} GB/s into the busiest rank; the link alone {l:.3g} GB/s)",
    ),
    Row(
        "Parts, overlapping", "update", tuple(f"{part}_seconds" for part in PARTS),
        lambda *parts: ", ".join(f"{part} {s * 1e3:.3g} ms" for part, s in zip(PARTS, parts, strict=True)),
    ),
    Row(
        "Checksums", "verify", ("checksums_compared", "mismatches"),
        lambda c, m: f"{c:,.0f} compared, {m:,.0f} wrong",
    ),
    Row(
        "Expert outputs", "verify", ("outputs_compared", "outputs_different"),
        lambda c, d: f"{c:,.0f} for random tokens compared, {d:,.0f} different",
    ),
)  # fmt: skip


def headline(summary: Summary) -> list[tuple[str, str]]:
    """Label and text of every row whose metrics the run has."""
    found = []
    for row in ROWS:
        metrics = summary.stages[row.stage].metrics if row.stage in summary.stages else {}
        if all(name in metrics for name in row.metrics):
            found.append((row.label, row.text(*(metrics[name] for name in row.metrics))))
    return found
