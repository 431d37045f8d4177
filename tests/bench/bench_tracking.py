"""What tracking costs, with SQLite: python -m tests.bench.bench_tracking [runs]

A run and a sweep in processes of their own, with the time that is spent in the store added up inside (import of MLflow
and opening included; the database is there already); metric points; and `status` and look-ups with 10 and with many runs,
which are copies of a real one. Wall seconds and CPU seconds of the process, the best of several.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

REPEATS = 5
POINTS, SERIES = 100_000, 20
TINY = ["model=tiny", "collect=synthetic", "topology=1x2"]
SWEEP = ["-m", *TINY, "run.last=plan", "place.redundant_experts=0,2,4,6", "seed=0,1", "hydra.sweep.dir=sweep"]
DEMO = [
    "-m",
    "collect.label=mmlu_test",
    "place.redundant_experts=0,8,16,32",
    "topology=2x4,1x8",
    "hydra.sweep.dir=sweep",
]
STUDY = [
    "-m", "model=deepseek_v3", "collect=synthetic", "topology.nodes=1,2,4,8", "topology.gpus_per_node=8",
    "place=contiguous,eplb,local_search", "place.redundant_experts=0,64,128", "run.last=plan",
    "hydra.sweep.dir=sweep",
]  # fmt: skip
TABLES = ("tags", "params", "latest_metrics", "metrics")
METHODS = (
    "__init__", "start", "finish", "log", "datasets", "artifacts", "artifact", "files", "run", "find", "search", "fetch",
)  # fmt: skip

Times = tuple[float, float]


def stopwatch() -> Times:
    return time.perf_counter(), time.process_time()


class InStore:
    """Adds up what the process spends in the methods of `Store`, the import of MLflow with them."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0
        self.calls = self.depth = 0

    def watch(self) -> None:
        from pipeline.store import Store

        for name in METHODS:
            setattr(Store, name, self.timed(getattr(Store, name)))

    def timed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            wall, cpu = stopwatch()
            self.depth += 1
            try:
                return method(*args, **options)
            finally:
                self.depth -= 1
                if self.depth == 0:
                    self.calls += 1
                    self.wall += time.perf_counter() - wall
                    self.cpu += time.process_time() - cpu

        return call


def child(overrides: list[str]) -> None:
    """`moesaic run`, and one line of JSON: seconds in all, and of those in the store."""
    wall, cpu = stopwatch()
    inside = InStore()
    inside.watch()
    from pipeline.app import run

    with contextlib.redirect_stdout(io.StringIO()):
        code = run(overrides)
    total = [time.perf_counter() - wall, time.process_time() - cpu]
    assert code == 0
    print(json.dumps({"total": total, "store": [inside.wall, inside.cpu], "calls": inside.calls}))


def apart(folder: Path, overrides: list[str]) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.bench.bench_tracking", "child", *overrides]
    variables = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    variables.pop("MLFLOW_TRACKING_URI", None)
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    value: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return value


def share(folder: Path, what: str, overrides: list[str], repeats: int) -> None:
    """Say what part of a command is tracking."""
    found = []
    for repeat in range(repeats):
        own = folder / f"{what.replace(' ', '_')}{repeat}"
        (own / "outputs").mkdir(parents=True)
        shutil.copy(folder / "outputs" / "empty.db", own / "outputs" / "mlflow.db")
        found.append(apart(own, overrides))
    wall = min(found, key=lambda one: one["store"][0])
    cpu = min(found, key=lambda one: one["store"][1])
    print(
        f"{what:<36} {wall['store'][0]:6.2f} s of {wall['total'][0]:.1f} s ({wall['store'][0] / wall['total'][0]:.1%}), "
        f"CPU {cpu['store'][1]:.2f} s; {wall['calls']} calls",
        flush=True,
    )


def points(folder: Path) -> None:
    from pipeline.store import SQLITE, Store

    store = Store(f"{SQLITE}{folder / 'outputs' / 'mlflow.db'}", "moesaic")
    series = {f"metric_{n}": [float(i) for i in range(POINTS // SERIES)] for n in range(SERIES)}
    rates, cpu_rates = [], []
    for _ in range(3):
        run = store.start("points", {"kind": "bench"})
        wall, cpu = stopwatch()
        store.log(run, series=series)
        rates.append(POINTS / (time.perf_counter() - wall))
        cpu_rates.append(POINTS / (time.process_time() - cpu))
        history = store.client.get_metric_history(run, "metric_7")
        assert [(p.step, p.value) for p in history] == [(i, float(i)) for i in range(POINTS // SERIES)]
        store.client.delete_run(run)
    print(f"{'metric points, 20 series of 5,000':<36} {max(rates):,.0f} a second, {max(cpu_rates):,.0f} a CPU second")


def copies(database: Path, original: str, count: int) -> None:
    """`count` copies of a pipeline run in the database, each with its stages, with ids and keys of their own."""
    with sqlite3.connect(database) as connection:
        select = "SELECT run_uuid FROM tags WHERE key = 'mlflow.parentRunId' AND value = ? UNION SELECT ?"
        originals = [row[0] for row in connection.execute(select, (original, original))]
        columns = {
            table: [row[1] for row in connection.execute(f"PRAGMA table_info({table})")] for table in ("runs", *TABLES)
        }
        rows = {
            (table, run): connection.execute(f"SELECT * FROM {table} WHERE run_uuid = ?", (run,)).fetchall()
            for table in columns
            for run in originals
        }
        new: dict[str, list[tuple[Any, ...]]] = {table: [] for table in columns}
        for number in range(count):
            ids = {run: uuid.uuid4().hex for run in originals}

            for (table, run), found in rows.items():
                for row in found:
                    fields = dict(zip(columns[table], row, strict=True)) | {"run_uuid": ids[run]}
                    if table == "tags" and fields["key"] == "mlflow.parentRunId":
                        fields["value"] = ids[original]
                    if table == "runs":
                        fields["start_time"] -= (number + 1) * 1000
                    if table == "tags" and fields["key"] == "moesaic.key":
                        fields["value"] = uuid.uuid4().hex * 2
                    new[table].append(tuple(fields.values()))
        for table, made in new.items():
            marks = ",".join("?" * len(columns[table]))
            connection.executemany(f"INSERT INTO {table} VALUES ({marks})", made)


def best(act: Callable[[], Any]) -> Times:
    found = []
    for _ in range(REPEATS):
        wall, cpu = stopwatch()
        act()
        found.append((time.perf_counter() - wall, time.process_time() - cpu))
    return min(wall for wall, _ in found), min(cpu for _, cpu in found)


def many(folder: Path, counts: list[int]) -> None:
    """`status` and look-ups in a store with so many runs."""
    from pipeline.checkpoint import Hit, Miss, look_up
    from pipeline.keys import KeyParts, read_manifest
    from pipeline.orphans import reap_orphans
    from pipeline.status import status
    from pipeline.store import SQLITE, Store
    from stages import paths

    database = folder / "outputs" / "mlflow.db"
    run_id = json.loads((folder / "one" / paths.SUMMARY).read_text())["run_id"]
    parts = read_manifest(folder / "one" / "place" / paths.MANIFEST).parts()
    unknown = KeyParts(parts.stage, parts.code_digest, {**parts.config, "more": 1}, parts.inputs, parts.environment)
    there = 1
    for count in counts:
        copies(database, run_id, count - there)
        there = count
        store = Store(f"{SQLITE}{database}", "moesaic")
        acts: dict[str, Callable[[], Any]] = {
            "status": lambda store=store: status(store, None, 10, as_json=False),
            "status RUN": lambda store=store: status(store, run_id[:8], 10, as_json=False),
            "look-up, found": lambda store=store: expect(look_up(store, parts, folder / "found"), Hit),
            "look-up, not found": lambda store=store: expect(look_up(store, unknown, folder / "found"), Miss),
            "looking for orphans": lambda store=store: reap_orphans(store),
        }
        for what, act in acts.items():
            wall, cpu = best(act)
            print(f"{f'{what}, {count:,} runs':<36} {wall * 1e3:6.0f} ms, CPU {cpu * 1e3:.0f} ms", flush=True)


def expect(found: object, kind: type[Any]) -> None:
    assert isinstance(found, kind), found


@contextlib.contextmanager
def place_to_work() -> Iterator[Path]:
    """A folder with a store that has the schema and one run, and a copy of it from before the run."""
    from pipeline.store import SQLITE, Store

    with tempfile.TemporaryDirectory(prefix="bench-tracking-") as temporary:
        folder = Path(temporary)
        database = folder / "outputs" / "mlflow.db"
        Store(f"{SQLITE}{database}", "moesaic")
        shutil.copy(database, database.with_name("empty.db"))
        apart(folder, [*TINY, "hydra.run.dir=one"])
        yield folder


def main() -> None:
    if sys.argv[1:2] == ["child"]:
        child(sys.argv[2:])
        return
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 5000
    with place_to_work() as folder:
        share(folder, "a run of five stages", [*TINY, "hydra.run.dir=run"], 3)
        share(folder, "a sweep of 8 smallest points to plan", SWEEP, 2)
        share(folder, "a sweep of 8 points, gpt-oss-20b", [*DEMO, "run.last=plan"], 1)
        share(folder, "a sweep of 8 whole runs, gpt-oss-20b", DEMO, 1)
        share(folder, "a sweep of 36 points, DeepSeek-V3", STUDY, 1)
        points(folder)
        many(folder, [10, count])


if __name__ == "__main__":
    main()
