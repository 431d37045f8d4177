"""What the points of a sweep came to, side by side: a table, pictures, and which points no other one beats."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.headline import bytes_text
from pipeline.points import GOOD
from pipeline.store import TAG, Store
from pipeline.story import Links
from stages import paths

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow.entities import Run
    from rich.table import Table

TABLE, COLUMNS, PICTURE = "comparison.csv", "comparison.parquet", "comparison.png"
STAR = "★"
MOST_LABELS = 40
MOST_POINTS = 10_000


@dataclass(frozen=True)
class Goal:
    """A metric of a run that a sweep is judged by. `upwards`: more of it is better."""

    label: str
    metric: str
    upwards: bool = False
    unit: str = ""

    @property
    def axis(self) -> str:
        unit = "GB" if self.unit == "bytes" else self.unit
        return f"{self.label} ({unit})" if unit else self.label

    def drawn(self, value: float) -> float:
        return value / 1e9 if self.unit == "bytes" else value

    def text(self, value: float) -> str:
        if self.unit == "bytes":
            return bytes_text(value)
        return f"{value:.4f}" if self.upwards else f"{value:.4g}{' ' if self.unit else ''}{self.unit}"


GOALS = (
    Goal("balancedness", "place.balancedness", upwards=True),
    Goal("across nodes", "plan.cross_node_bytes", unit="bytes"),
    Goal("predicted", "plan.predicted_seconds", unit="s"),
    Goal("memory per GPU", "plan.rank_weight_bytes", unit="bytes"),
)


@dataclass(frozen=True)
class Point:
    """A run of the sweep. `what`: the overrides in which the points differ, which `overrides` has by key. `values`: by
    label of the goal. `metrics`: all that the run has."""

    run_id: str
    what: str
    status: str
    cause: str
    values: dict[str, float]
    number: int = 0
    exit_code: int = 0
    overrides: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def good(self) -> bool:
        return self.status in GOOD


@dataclass(frozen=True)
class Comparison:
    """`points` in the order in which they ran; `goals` those that some point has a value for; `front`: indices of the
    points that are at least as good as any other in one goal without being beaten in all (Pareto)."""

    points: list[Point]
    goals: list[Goal]
    front: set[int]

    def metrics(self) -> dict[str, float]:
        failed = sum(not point.values for point in self.points)
        return {"points": len(self.points), "failed_points": failed, "pareto_points": len(self.front)}

    def rows(self) -> list[list[str]]:
        return [
            [
                f"{index} {STAR}" if index in self.front else str(index),
                point.what,
                *(goal.text(point.values[goal.label]) if goal.label in point.values else "" for goal in self.goals),
                point.cause or point.status,
            ]
            for index, point in enumerate(self.points)
        ]

    @property
    def header(self) -> list[str]:
        return ["#", "point", *(goal.label for goal in self.goals), "status"]

    def note(self, experiment_id: str) -> str:
        """Markdown, with a link to each point."""
        best = f"{len(self.front)} of {len(self.points)} points are beaten by no other ({STAR})."
        lines = [best if self.front else f"{len(self.points)} points.", ""]
        lines += ["| " + " | ".join(self.header) + " |", "|---" * len(self.header) + "|"]
        for point, row in zip(self.points, self.rows(), strict=True):
            link = Links(experiment_id).run(point.run_id, row[1] or None)
            lines.append("| " + " | ".join([row[0], link, *row[2:]]) + " |")
        return "\n".join(lines)

    def table(self) -> Table:
        from rich.table import Table

        shown = Table(box=None, pad_edge=False)
        for title in self.header:
            shown.add_column(title, justify="left" if title in ("#", "point", "status") else "right")
        for row in self.rows():
            shown.add_row(*row)
        return shown

    def columns(self) -> dict[str, list[Any]]:
        """A row a point, for other programs: numbers as they are, what is swept a column a key, what is not there None.
        The goals come before the other metrics."""
        keys = sorted({key for point in self.points for key in point.overrides})
        goals = [goal.metric for goal in self.goals]
        others = sorted({name for point in self.points for name in point.metrics} - set(goals))
        return {
            "run_id": [point.run_id for point in self.points],
            "number": [point.number for point in self.points],
            "point": [point.what for point in self.points],
            **{key: [point.overrides.get(key) for point in self.points] for key in keys},
            "pareto": [int(index in self.front) for index in range(len(self.points))],
            **{name: [point.metrics.get(name) for point in self.points] for name in goals},
            "status": [point.status for point in self.points],
            "cause": [point.cause for point in self.points],
            **{name: [point.metrics.get(name) for point in self.points] for name in others},
        }

    def csv(self) -> str:
        columns = self.columns()
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(["" if cell is None else cell for cell in row] for row in zip(*columns.values(), strict=True))
        return out.getvalue()

    def picture(self) -> Figure | None:
        """Each goal against the first; points of the front are filled and numbered as in the table."""
        if len(self.goals) < 2:
            return None
        from matplotlib.figure import Figure

        from stages.figures import GREY, ORANGE

        first, others = self.goals[0], self.goals[1:]
        figure = Figure(figsize=(4.6 * len(others), 4.4), layout="constrained")
        for axes, goal in zip(figure.subplots(1, len(others), squeeze=False)[0], others, strict=True):
            for index, point in enumerate(self.points):
                if {first.label, goal.label} <= set(point.values):
                    x, y = goal.drawn(point.values[goal.label]), first.drawn(point.values[first.label])
                    on_front = index in self.front
                    axes.scatter(
                        x, y, s=42, facecolor=ORANGE if on_front else "none", edgecolor=ORANGE if on_front else GREY
                    )
                    if on_front and len(self.front) <= MOST_LABELS:
                        axes.annotate(str(index), (x, y), textcoords="offset points", xytext=(4, 4), fontsize="small")
            axes.set(xlabel=goal.axis, ylabel=first.axis)
            axes.spines[["top", "right"]].set_visible(False)
        figure.suptitle("Points of the sweep; filled: beaten by no other, with their numbers", fontsize="medium")
        return figure


def points_of(store: Store, sweep: str) -> list[Run]:
    """The runs of all points of a sweep, also those that were begun and begun again."""
    query = f"tags.`mlflow.parentRunId` = '{sweep}' and tags.`{TAG}kind` = 'run'"
    return store.search(query, limit=MOST_POINTS)


def latest(runs: Iterable[Run]) -> list[Run]:
    """The last run of each point, in order of the points."""
    last: dict[str, Run] = {}
    for run in sorted(runs, key=lambda run: int(run.info.start_time)):
        last[run.data.tags.get(f"{TAG}directory", run.info.run_id)] = run
    return sorted(last.values(), key=lambda run: int(run.data.tags.get(f"{TAG}point", "0")))


def compare(runs: Iterable[Run]) -> Comparison:
    """Of the pipeline runs under one sweep."""
    ordered = latest(runs)
    overrides = [set(run.data.tags.get(f"{TAG}overrides", "").split("\n")) for run in ordered]
    common = set.intersection(*overrides) if len(overrides) > 1 else set()
    points = []
    for run in ordered:
        own = [o for o in run.data.tags.get(f"{TAG}overrides", "").split("\n") if o not in common]
        values = {goal.label: run.data.metrics[goal.metric] for goal in GOALS if goal.metric in run.data.metrics}
        tags = run.data.tags
        status, cause = tags.get(f"{TAG}outcome", run.info.status.lower()), tags.get(f"{TAG}cause", "")
        status = "running" if run.info.status == "RUNNING" else status
        code = int(tags.get(f"{TAG}exit_code", "0")) or (0 if status in (*GOOD, "running") else 1)
        points.append(
            Point(
                run_id=run.info.run_id,
                what=" ".join(own),
                status=status,
                cause=cause,
                values=values,
                number=int(tags.get(f"{TAG}point", "0")),
                exit_code=code,
                overrides=dict(o.lstrip("+").partition("=")[::2] for o in own),
                metrics=dict(run.data.metrics),
            )
        )
    goals = [goal for goal in GOALS if any(goal.label in point.values for point in points)]
    return Comparison(points, goals, pareto_front(points, goals))


def pareto_front(points: list[Point], goals: list[Goal]) -> set[int]:
    """The points with all values that no other one matches in every goal and beats in one."""
    values = {
        index: [point.values[g.label] * (-1 if g.upwards else 1) for g in goals]
        for index, point in enumerate(points)
        if goals and all(goal.label in point.values for goal in goals)
    }

    def beats(a: list[float], b: list[float]) -> bool:
        return a != b and all(x <= y for x, y in zip(a, b, strict=True))

    return {index for index, own in values.items() if not any(beats(other, own) for other in values.values())}


def write(found: Comparison, directory: Path) -> list[Path]:
    """The table as CSV and Parquet, and the picture where there is one, in the sweep's folder."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = [directory / TABLE, directory / COLUMNS]
    paths.write_text(files[0], found.csv())
    with paths.atomic(files[1]) as temporary:
        pq.write_table(pa.table(found.columns()), temporary)
    figure = found.picture()
    if figure is not None:
        with paths.atomic(directory / PICTURE) as temporary:
            figure.savefig(temporary, dpi=110, metadata={"Software": None})
        files.append(directory / PICTURE)
    return files
