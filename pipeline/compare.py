"""`moesaic compare A B`: in what two runs differ: config, code and machine, inputs, metrics, and which experts are where."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from pipeline.keys import Manifest, read_manifest
from pipeline.store import GONE, TAG, Store
from stages import paths
from stages.errors import BadInput, MoesaicError
from stages.moves import COLUMNS, Move, Moves, moves_between
from stages.placement import Placement, read_placement
from stages.temporary import temporary_folder

if TYPE_CHECKING:
    from mlflow.entities import Run
    from rich.table import Table

OF_THIS_RUN = ("tracking.", "run.", "hydra.", "pipeline.")
"""Config that cannot change what comes out."""
SHOWN_MOVES = 20
NONE = "–"


@dataclass(frozen=True)
class Difference:
    """Of one name; None where a run has nothing of it."""

    name: str
    a: Any
    b: Any


@dataclass(frozen=True)
class Placements:
    """From the new map of A to that of B. `moves`: the experts that other GPUs hold; `why_not`: why they cannot be
    compared, else empty."""

    layers: int = 0
    experts: int = 0
    arrivals: int = 0
    moves: tuple[Move, ...] = ()
    why_not: str = ""


@dataclass(frozen=True)
class Compared:
    """Differences alone, but for `metrics`, which has all."""

    runs: list[dict[str, Any]]
    provenance: list[Difference] = field(default_factory=list)
    config: list[Difference] = field(default_factory=list)
    inputs: list[Difference] = field(default_factory=list)
    metrics: list[Difference] = field(default_factory=list)
    placements: Placements = field(default_factory=Placements)

    @property
    def same_metrics(self) -> int:
        return sum(m.a == m.b for m in self.metrics)


@dataclass(frozen=True)
class Side:
    """What the store knows of one run. `manifests` by stage."""

    run: Run
    config: Mapping[str, str]
    manifests: Mapping[str, Manifest]
    placement: Placement | None
    ranks: int


def compare(store: Store, first: str, second: str) -> Compared:
    with temporary_folder("compare") as temporary:
        a, b = (_side(store, store.pipeline_run(store.find(each)), temporary) for each in (first, second))
    if a.run.info.run_id == b.run.info.run_id:
        raise BadInput(f"{first} and {second} are the same run: name two.")
    numbers = a.run.data.metrics, b.run.data.metrics
    return Compared(
        runs=[_told(side) for side in (a, b)],
        provenance=list(_differences(_provenance(a), _provenance(b))),
        config=list(_differences(a.config, b.config)),
        inputs=list(_differences(_inputs(a), _inputs(b))),
        metrics=[Difference(n, numbers[0].get(n), numbers[1].get(n)) for n in _names(*numbers)],
        placements=_placements(a, b),
    )


def _side(store: Store, run: Run, temporary: Path) -> Side:
    from mlflow.exceptions import MlflowException

    folder = temporary / run.info.run_id
    folder.mkdir(exist_ok=True)
    config = store.fetch(run, paths.CONFIG, folder)
    if config is None:
        raise MoesaicError(f"Artifact {paths.CONFIG} of run {run.info.run_id[:8]} is gone.")
    value = yaml.safe_load(config.read_text(encoding="utf-8"))
    manifests, placement = {}, None
    prefix = f"{TAG}stage."
    for name, text in run.data.tags.items():
        made_by = text.partition(" ")[2]
        if not name.startswith(prefix) or not made_by:
            continue
        try:
            stage, own = store.run(made_by), folder / made_by
        except MlflowException as error:
            if error.error_code != GONE:
                raise
            raise MoesaicError(
                f"Run {run.info.run_id[:8]} cannot be compared: the run {made_by[:8]} that its "
                f"{name.removeprefix(prefix)} is from is gone."
            ) from error
        own.mkdir(exist_ok=True)
        if (file := store.fetch(stage, paths.MANIFEST, own)) is not None:
            manifest = read_manifest(file)
            manifests[name.removeprefix(prefix)] = manifest
            if paths.PLACEMENT in manifest.outputs and (found := store.fetch(stage, paths.PLACEMENT, own)) is not None:
                if paths.sha256(found) != manifest.outputs[paths.PLACEMENT]:
                    raise BadInput(f"Artifact {paths.PLACEMENT} of run {made_by[:8]} was changed since it was made.")
                placement = read_placement(found)
    topology = value.get("topology") or {}
    ranks = int(topology.get("nodes", 1)) * int(topology.get("gpus_per_node", 1))
    if placement is not None and placement.shape is not None:
        ranks = placement.shape[1]
    flat = {name: text for name, text in _flat(value).items() if not name.startswith(OF_THIS_RUN)}
    return Side(run, flat, manifests, placement, ranks)


def _told(side: Side) -> dict[str, Any]:
    info, tags = side.run.info, side.run.data.tags
    started = datetime.fromtimestamp(info.start_time / 1000, UTC).isoformat(timespec="seconds")
    outcome = tags.get(f"{TAG}outcome", info.status.lower())
    return {"run_id": info.run_id, "name": info.run_name, "started": started, "status": outcome}


def _provenance(side: Side) -> dict[str, str]:
    tags = side.run.data.tags
    dirty = " with changes" if tags.get(f"{TAG}git_dirty") == "true" else ""
    found = {
        "version": tags.get(f"{TAG}version", ""),
        "commit": tags.get("mlflow.source.git.commit", "none") + dirty,
        "machine": tags.get(f"{TAG}machine", ""),
        "user": tags.get("mlflow.user", ""),
    }
    for stage, manifest in side.manifests.items():
        found[f"code of {stage}"] = manifest.code_digest
        found |= {f"{stage}: {name}": str(text) for name, text in manifest.environment.items()}
    return found


def _inputs(side: Side) -> dict[str, str]:
    """What came from outside by its digest, and what the stages made of it."""
    found = {}
    for item in side.run.inputs.dataset_inputs if side.run.inputs is not None else ():
        found[f"dataset {item.dataset.name}"] = json.loads(item.dataset.source)["sha256"]
    for stage, manifest in side.manifests.items():
        found |= {f"{stage} reads {name}": digest for name, digest in manifest.inputs.items()}
    return found


def _placements(a: Side, b: Side) -> Placements:
    if a.placement is None or b.placement is None:
        who = [side.run.info.run_id[:8] for side in (a, b) if side.placement is None]
        return Placements(why_not=f"{' and '.join(who)} left no placement")
    shapes = [(p.layers, p.experts) for p in (a.placement, b.placement)]
    if shapes[0] != shapes[1]:
        words = " and ".join(f"{layers} layers × {experts} experts" for layers, experts in shapes)
        return Placements(why_not=f"they are of {words}")
    layers, experts = shapes[0]
    moves: Moves = moves_between(a.placement.deployed, b.placement.deployed, experts, a.ranks, b.ranks)
    return Placements(layers, experts, moves.arrivals, tuple(moves))


def _differences(a: Mapping[str, str], b: Mapping[str, str]) -> Iterator[Difference]:
    for name in _names(a, b):
        if a.get(name) != b.get(name):
            yield Difference(name, a.get(name), b.get(name))


def _names(a: Iterable[str], b: Iterable[str]) -> list[str]:
    return list(dict.fromkeys([*a, *b]))


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, item in value.items():
        if isinstance(item, Mapping):
            flat |= _flat(item, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = item if isinstance(item, str) else json.dumps(item)
    return flat


def render(found: Compared, *, as_json: bool) -> str:
    if as_json:
        value = asdict(found)
        value["placements"]["moves"] = [
            {**move._asdict(), "arrives": move.arrives, "leaves": move.leaves} for move in found.placements.moves
        ]
        return json.dumps(value, indent=1)
    lines = [
        f"{x}  {run['run_id']}  {run['status']}  {run['started']}  {run['name']}"
        for x, run in zip("AB", found.runs, strict=True)
    ]
    for title, rows in (
        ("Config", found.config),
        ("Inputs (SHA-256)", found.inputs),
        ("Code and machine", found.provenance),
    ):
        cells = [(row.name, _word(row.a), _word(row.b)) for row in rows]
        lines += ["", title, _table(("", "A", "B"), cells) if rows else "  the same"]
    differ = [(m.name, _number(m.a), _number(m.b), _change(m)) for m in found.metrics if m.a != m.b]
    lines += ["", f"Metrics ({found.same_metrics} more are the same)"]
    lines.append(_table(("", "A", "B", "B − A"), differ, numbers=True) if differ else "  the same")
    return "\n".join([*lines, "", *_placement_lines(found.placements)])


def _placement_lines(found: Placements) -> list[str]:
    if found.why_not:
        return [f"Placements cannot be compared: {found.why_not}."]
    if not found.moves:
        return [f"Placements: every GPU holds the same experts, in all {found.layers} layers."]
    of = found.layers * found.experts
    head = f"Placements: {len(found.moves):,} of {of:,} experts are on other GPUs; GPUs get {found.arrivals:,} that they lacked"
    rows = [tuple(cell or NONE for cell in move.cells()) for move in found.moves[:SHOWN_MOVES]]
    titles = tuple(title.replace("before", "in A").replace("after", "in B") for title in COLUMNS)
    more = len(found.moves) - SHOWN_MOVES
    return [head, _table(titles, rows), *([f"… and {more:,} more: --json has all"] if more > 0 else [])]


def _table(titles: tuple[str, ...], rows: Iterable[tuple[str, ...]], *, numbers: bool = False) -> str:
    import io

    from rich.console import Console
    from rich.table import Table

    shown: Table = Table(box=None, pad_edge=False)
    for index, title in enumerate(titles):
        shown.add_column(title, justify="right" if numbers and index else "left", overflow="fold")
    for row in rows:
        shown.add_row(*row)
    out = io.StringIO()
    Console(file=out, width=160).print(shown)
    return "\n".join(f"  {line.rstrip()}" for line in out.getvalue().splitlines())


def _word(value: str | None) -> str:
    if value is None:
        return NONE
    return value if len(value) <= 44 else f"{value[:16]}…" if _is_digest(value) else f"{value[:43]}…"


def _is_digest(value: str) -> bool:
    return all(c in "0123456789abcdef" for c in value[:40])


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value:,.0f}" if float(value).is_integer() else f"{value:.6g}"


def _change(metric: Difference) -> str:
    if metric.a is None or metric.b is None:
        return ""
    change = metric.b - metric.a
    return ("+" if change > 0 else "") + _number(change) + (f" ({change / abs(metric.a):+.1%})" if metric.a else "")
