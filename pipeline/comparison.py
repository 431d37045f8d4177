"""What the points of a sweep came to, side by side: a table, pictures, and which points no other one beats."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.headline import bytes_text
from pipeline.store import TAG
from pipeline.story import Links
from stages import paths

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow.entities import Run
    from rich.table import Table

TABLE, PICTURE = "comparison.csv", "comparison.png"
STAR = "★"
MOST_LABELS = 40


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
    """A run of the sweep. `what`: the overrides in which the points differ. `values`: by label of the goal."""

    run_id: str
    what: str
    status: str
    cause: str
    values: dict[str, float]


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

    def csv(self) -> str:
        """Numbers as they are, and the ids of the runs."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["run_id", "point", "pareto", *(goal.metric for goal in self.goals), "status", "cause"])
        for index, point in enumerate(self.points):
            values = [point.values.get(goal.label, "") for goal in self.goals]
            writer.writerow([point.run_id, point.what, int(index in self.front), *values, point.status, point.cause])
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


def compare(runs: Iterable[Run]) -> Comparison:
    """Of the pipeline runs under one sweep."""
    ordered = sorted(runs, key=lambda run: int(run.info.start_time))
    overrides = [set(run.data.tags.get(f"{TAG}overrides", "").split("\n")) for run in ordered]
    common = set.intersection(*overrides) if len(overrides) > 1 else set()
    points = []
    for run in ordered:
        own = [o for o in run.data.tags.get(f"{TAG}overrides", "").split("\n") if o not in common]
        values = {goal.label: run.data.metrics[goal.metric] for goal in GOALS if goal.metric in run.data.metrics}
        tags = run.data.tags
        status, cause = tags.get(f"{TAG}outcome", run.info.status.lower()), tags.get(f"{TAG}cause", "")
        points.append(Point(run.info.run_id, " ".join(own), status, cause, values))
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
    """The table, and the picture where there is one, in the sweep's folder."""
    files = [directory / TABLE]
    paths.write_text(files[0], found.csv())
    figure = found.picture()
    if figure is not None:
        with paths.atomic(directory / PICTURE) as temporary:
            figure.savefig(temporary, dpi=110, metadata={"Software": None})
        files.append(directory / PICTURE)
    return files
