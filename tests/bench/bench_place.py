"""python -m tests.bench.bench_place

The placement policies against each other, and against the project's own EPLB, on the shipped loads and on published
sizes: time, balance, distance to the proven bound, replicas that share a GPU, and what moves after 5 % noise on the
loads. Then what the moves buy, and which windows of the shipped trace a placement should be made for. Writes the tables
and a figure to outputs/bench_place and logs them to the tracking store, experiment `bench`.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pandas as pd

from stages import figures
from stages.balance import balancedness_per_layer, gpu_load, lower_bound
from stages.collect.samples import SAMPLES
from stages.expert_map import ExpertMap, duplicate_replicas, moved_slots
from stages.load import LoadStats
from stages.model import ModelSpec, TensorSpec
from stages.solvers.fit import fitted_load
from stages.solvers.local_search import movement_curve
from stages.solvers.options import LOAD_RULES, PlaceOptions
from stages.solvers.solver import Solver, solver_of
from stages.topology import Link, Links, Topology
from tests.stages.solvers import cases

FOLDER = Path("outputs/bench_place")
MODEL = ModelSpec(num_groups=1, tensors=[TensorSpec("expert", [44_050_944], "uint8")])
H100 = Links(Link(349.0, 20.0), Link(50.0, 30.0))
NOISE = 0.05
REPEATS, ENOUGH = 5, 1.0
"""Runs of which the best counts; one that takes more seconds than that is not repeated."""


@dataclass(frozen=True)
class Case:
    """`load`: makes the [L, E] loads. `seconds`: a budget to look at beside the default; `attempts`: what two cores that
    have nothing else to do make of it, about."""

    name: str
    load: Callable[[], np.ndarray]
    slots: int
    ranks: int
    seconds: float
    attempts: int


def flashlb_toy() -> np.ndarray:
    return np.array([[600, 560, 120, 120, 20, 10, 10, 10]], dtype=float)


def kimi_k2() -> np.ndarray:
    return np.random.default_rng(0).lognormal(0.0, 1.0, (60, 384))


CASES = (
    Case("gpt-oss 24x32, 48 on 16", cases.gpt_oss, 48, 16, 0.1, 2500),
    Case("gpt-oss 24x32, 40 on 8", cases.gpt_oss, 40, 8, 0.1, 3500),
    Case("OLMoE 9x64, 80 on 8", cases.olmoe, 80, 8, 0.1, 3500),
    Case("lognormal 58x256, 288 on 32", cases.deepseek_v3, 288, 32, 0.15, 60),
    Case("Zipf 58x256, 320 on 64", cases.zipf, 320, 64, 0.15, 40),
    Case("FlashLB toy 1x8, 16 on 8", flashlb_toy, 16, 8, 0.1, 20000),
    Case("Kimi-K2 60x384, 512 on 128", kimi_k2, 512, 128, 1.0, 160),
    Case("Kimi-K2 60x384, 1024 on 1024", kimi_k2, 1024, 1024, 1.0, 100),
)


def policies(case: Case) -> dict[str, PlaceOptions]:
    return {
        "contiguous": PlaceOptions(algorithm="contiguous"),
        "eplb": PlaceOptions(algorithm="eplb"),
        "eplb, relabelled": PlaceOptions(algorithm="eplb", relabel=True),
        f"local_search, {case.seconds:g} s": PlaceOptions(seconds=case.seconds),
        f"local_search, {case.attempts:,} attempts": PlaceOptions(max_steps=case.attempts),
        "local_search": PlaceOptions(),
        "local_search, target 0.995": PlaceOptions(target_balancedness=0.995),
        "local_search, a tenth moves": PlaceOptions(max_moved_slots=case.load().shape[0] * case.slots // 10),
    }


def solver(load: np.ndarray, case: Case, options: PlaceOptions, links: Links = H100) -> Solver:
    """One node, as in the published measurements: then every moved slot counts the same."""
    counts = np.maximum(np.round(load / load.mean() * 1e6), 1).astype(np.int64)[None]
    options = replace(options, redundant_experts=case.slots - load.shape[1])
    return solver_of(options, MODEL, Topology(nodes=1, gpus_per_node=case.ranks, links=links), 0, LoadStats(counts))


def measure(case: Case) -> list[dict[str, Any]]:
    """A row for every policy. What is in place at first is contiguous; then the loads change by 5 %."""
    load = case.load()
    noisy = load * (1 + NOISE * np.random.default_rng(1).standard_normal(load.shape))
    rows = []
    in_place: ExpertMap | None = None
    for name, options in policies(case).items():
        restrained = options.restrained
        place = solver(load, case, options)
        wall, cpu, found = math.inf, math.inf, None
        for repeat in range(REPEATS):
            if repeat and wall > ENOUGH:
                break
            start, busy = time.perf_counter(), time.process_time()
            # With movement counted: from the best placement for the old loads. Else from the contiguous one.
            found = place.solve(noisy if restrained else load, in_place if restrained else None)
            wall, cpu = min(wall, time.perf_counter() - start), min(cpu, time.process_time() - busy)
        assert found is not None
        if name == "local_search":
            in_place = found.map
        judged = noisy if restrained else load
        gpu = gpu_load(judged, found.map, case.ranks)
        bound = lower_bound(judged, case.slots, case.ranks, reached=gpu.max(axis=1))
        balance = balancedness_per_layer(gpu)
        again = found.map if restrained else place.solve(noisy, found.map).map
        stale = in_place if restrained else found.map
        rows.append(
            {
                "case": case.name,
                "policy": name,
                "ms": wall * 1e3,
                "cpu ms": cpu * 1e3,
                "cut": found.cut,
                "balancedness": balance.mean(),
                "worst layer": balance.min(),
                "gap": (gpu.max(axis=1) / bound).max() - 1,
                "duplicates": duplicate_replicas(found.map, load.shape[1], case.ranks),
                "moved after noise": moved_slots(stale, again, load.shape[1], case.ranks),
                "after noise": balancedness_per_layer(gpu_load(noisy, again, case.ranks)).mean(),
                "peak MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
            }
        )
    return rows


def curves() -> tuple[pd.DataFrame, Any]:
    """What moved slots buy after 5 % noise at DeepSeek-V3 size, on one fast node and on four with a slower network."""
    case = next(case for case in CASES if case.load is cases.deepseek_v3)
    load = case.load()
    noisy = load * (1 + NOISE * np.random.default_rng(1).standard_normal(load.shape))
    rows, series = [], {}
    for name, nodes in (("1 x 32 GPUs", 1), ("4 x 8 GPUs", 4)):
        place = replace(
            solver(load, case, PlaceOptions()), topology=Topology(nodes=nodes, gpus_per_node=32 // nodes, links=H100)
        )
        in_place = place.solve(load).map
        problem = place.problem(noisy, in_place)
        moved, balance = movement_curve(problem, place.options, place.solve(noisy, in_place).map, 0)
        series[name] = (moved * MODEL.expert_bytes / 1e9, balance)
        rows += [
            {"topology": name, "balancedness": target, "moved slots": moved[balance >= target].min()}
            for target in (0.97, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995)
        ]
    figure = figures.curves(
        series, {}, "After 5 % noise: what moving buys (DeepSeek-V3 size)", "moved bytes (GB)", "balancedness"
    )
    return pd.DataFrame(rows), figure


def load_rules() -> pd.DataFrame:
    """Placements of gpt-oss-20b (40 slots on 8 GPUs) made for some windows and judged on others, by what windows count."""
    with np.load(SAMPLES["gpt_oss_20b"].path) as file:
        counts, kinds = file["logical_count"].astype(np.int64), [label.split("|")[0] for label in file["label"]]
    domains = {
        kind: merged(counts[np.array(kinds) == kind]) for kind in dict.fromkeys(kinds) if kinds.count(kind) >= 80
    }
    case = CASES[1]
    rows = []
    for rule in ("contiguous", *LOAD_RULES):
        options = (
            PlaceOptions(algorithm="contiguous") if rule == "contiguous" else PlaceOptions(load=rule, max_steps=200)
        )
        place = solver(counts.sum(axis=0).astype(float), case, options)
        next_, same, other = [], [], []
        for name, windows in domains.items():
            half = len(windows) // 2
            fitted = place.solve(fitted_load(windows[:half], options)).map
            same.append(judged(windows[half:].sum(axis=0), fitted))
            next_ += [
                judged(windows[end], place.solve(fitted_load(windows[max(0, end - 8) : end], options)).map)
                for end in range(2, len(windows))
            ]
            whole = place.solve(fitted_load(windows, options)).map
            other += [judged(others.sum(axis=0), whole) for kind, others in domains.items() if kind != name]
        rows.append(
            {
                "place.load": rule,
                "next window": np.mean(next_),
                "later half of a domain": np.mean(same),
                "another domain": np.mean(other),
                "another domain, worst": np.min(other),
            }
        )
    return pd.DataFrame(rows)


def merged(counts: np.ndarray, width: int = 8) -> np.ndarray:
    """[T', L, E]: every `width` windows as one."""
    return np.stack([part.sum(axis=0) for part in np.split(counts, range(width, len(counts), width))])


def judged(load: np.ndarray, placed: ExpertMap) -> float:
    return float(balancedness_per_layer(gpu_load(load.astype(float), placed, 8)).mean())


def markdown(table: pd.DataFrame) -> str:
    """The table for people: four digits where they tell something."""
    text = table.copy()
    for name in text.columns:
        if name in ("ms", "cpu ms", "peak MB"):
            text[name] = text[name].map("{:,.0f}".format)
        elif name == "gap":
            text[name] = text[name].map("{:.3%}".format)
        elif text[name].dtype == float:
            text[name] = text[name].map("{:,.0f}".format if text[name].max() > 2 else "{:.5f}".format)
    lines = ["| " + " | ".join(text.columns) + " |", "|" + "---|" * len(text.columns)]
    return "\n".join([*lines, *("| " + " | ".join(map(str, row)) + " |" for row in text.to_numpy())]) + "\n"


def main() -> None:
    from pipeline.facts import machine_facts
    from pipeline.store import NOTE, Store, tracking_uri

    FOLDER.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    # Each case in a process of its own, so that its peak of memory is its own.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        for found in pool.map(measure, CASES):
            rows += found
            print(markdown(pd.DataFrame(found)), flush=True)
    curve, figure = curves()
    tables = {"policies": pd.DataFrame(rows), "moves": curve, "load_rules": load_rules()}
    title = f"{os.cpu_count()} cores, numba {numba.__version__}, numpy {np.__version__}; best of {REPEATS} runs"
    note = f"{title}\n\n" + "\n".join(f"## {name}\n\n{markdown(table)}" for name, table in tables.items())
    for name, table in tables.items():
        table.to_csv(FOLDER / f"{name}.csv", index=False)
    (FOLDER / "bench_place.md").write_text(note, encoding="utf-8")
    figure.savefig(FOLDER / "moves.png", dpi=110)
    print(note)
    store = Store(tracking_uri(), "bench")
    run = store.start("bench-place", {"kind": "bench", "machine": machine_facts()["host"]})
    store.artifacts(run, FOLDER)
    for row in rows:
        name = f"{row['case']}.{row['policy']}".translate(str.maketrans({",": "", "%": ""}))
        store.metrics(run, {f"{name}.{key}": row[key] for key in ("ms", "balancedness", "gap", "moved after noise")})
    store.finish(run, "FINISHED", tags={NOTE: note})
    print(f"tables in {FOLDER}, run {run} in the experiment `bench`")


if __name__ == "__main__":
    main()
