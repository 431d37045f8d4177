"""make bench-update, or: PYTHONPATH=. python -m tests.bench.bench_update --model qwen3_30b_a3b --repeats 5 --out report.md

The executors, transports and policies side by side on all GPUs of this machine (without GPUs, on `--ranks` CPU ranks): old
and new maps, the same for all, run in turn, every slot compared with the truth after each update. The link is what all
ranks together exchange with all others.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stages.expert_map import slots_for
from stages.model import ModelSpec
from stages.topology import Topology
from stages.update.launch import launch
from stages.update.machine import cpu_name, gpus, nccl_version
from tests.bench.update_ranks import VARIANTS, Question, Way, measure
from tests.gpu.models import layers_that_fit, placed_maps, random_map, read_model

LOADS, POLICIES = ("random", "gpt_oss"), ("direct", "relay")
FIT_SHARE, FIT_ON_CPU = 0.75, 1 << 29
"""Of a GPU's memory for weights: the rest is for staging, the reference's layer and what is measured; bytes on a CPU."""
DOCS = Path(__file__).parents[2] / "docs" / "benchmarks"


def one_line(r: dict[str, Any]) -> str:
    split = " ".join(f"{what} {seconds * 1e3:.1f}" for what, seconds in r["split"].items())
    return (
        f"{r['nodes']} nodes {r['policy']:6} {r['variant']:16} {r['asked_mib']:5.0f} MiB {r['seconds'] * 1e3:8.2f} ms (predicted {r['predicted'] * 1e3:.2f}) {r['gb_per_s']:6.1f} GB/s {r['efficiency']:6.1%} of {r['link']:.0f}  wrong {r['wrong']}  "
        f"batches {r['batches']}  compile {r['compile'] * 1e3:.0f} ms  peak {r['peak'] / 1e6:.0f} MB  {split}"
    )


def table(results: list[dict[str, Any]]) -> list[str]:
    """A line for each model and variant: medians, and the spread, over the repeats but the first."""
    lines = []
    shown = [r for r in results if r["repeat"] or not any(other["repeat"] for other in results)]
    for which in dict.fromkeys(_which(r) for r in shown):
        mine = [r for r in shown if _which(r) == which]
        seconds = [float(r["seconds"]) * 1e3 for r in mine]
        base = [float(r["seconds"]) * 1e3 for r in shown if _which(r)[:3] == which[:3] and r["variant"] == "reference"]
        ratio = f"{statistics.median(base) / statistics.median(seconds):.1f} x" if base else ""
        row = mine[0]
        split = {
            k: statistics.median(float(r["split"].get(k, 0)) for r in mine) * 1e3 for k in row["split"] if k != "layer"
        }
        lines.append(
            f"| {' | '.join(which[:4])} | {statistics.median(seconds):.2f} ({min(seconds):.2f}–{max(seconds):.2f}) | "
            f"{float(row['predicted']) * 1e3:.2f} ({float(row['predicted']) * 1e3 / statistics.median(seconds) - 1:+.0%}) | "
            f"{statistics.median(float(r['gb_per_s']) for r in mine):.1f} | "
            f"{statistics.median(float(r['link']) for r in mine):.0f} | "
            f"{statistics.median(float(r['efficiency']) for r in mine):.1%} | {ratio} | "
            f"{float(row['staging']) / 2**20:.0f} | {float(max(r['peak'] for r in mine)) / 2**20:.0f} | {row['batches']} | "
            + " / ".join(f"{split.get(k, 0):.1f}" for k in ("pack", "network", "hash", "commit", "wait"))
            + f" | {sum(int(r['wrong']) for r in mine)} |"
        )
    return lines


def _which(r: dict[str, Any]) -> tuple[str, ...]:
    """What tells results apart, beside the repeat."""
    return str(r["model"]), str(r["nodes"]), str(r["policy"]), str(r["variant"]), str(r["asked_mib"])


COLUMNS = (
    "model", "nodes", "policy", "variant", "update, ms: median (least–most)", "predicted, ms", "GB/s into the busiest rank", "link GB/s", "link efficiency",
    "against reference", "staging MiB", "peak beside the weights, MiB", "batches",
    "pack / network / hash / commit / wait, ms", "wrong",
)  # fmt: skip
HEADER = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]


def device() -> str:
    return f"{len(gpus())} x {gpus()[0].name}" if gpus() else cpu_name()


def heading(ranks: int) -> list[str]:
    """What ran, on what, by which command."""
    facts = [device(), f"{ranks} ranks", f"torch {torch.__version__}"]
    if gpus():
        driver = said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").splitlines()[0]
        facts += [f"NCCL {nccl_version()}", f"driver {driver}"]
    facts.append(f"commit {said('git', 'rev-parse', '--short', 'HEAD') or 'unknown'}")
    command = f"PYTHONPATH=. python -m tests.bench.bench_update {shlex.join(sys.argv[1:])}"
    return ["# The update, by executor and transport", "", ", ".join(facts) + ".", "", f"    {command}", ""]


def said(*command: str) -> str:
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip()


def model_of(name: str, options: argparse.Namespace, ranks: int) -> ModelSpec:
    """From NAME, NAME:LAYERS or NAME:fit."""
    name, _, layers = name.partition(":")
    if layers != "fit":
        return read_model(name, int(layers) if layers else None, options.scale)
    model = read_model(name, None, options.scale)
    memory = min((gpu.memory_bytes for gpu in gpus()), default=FIT_ON_CPU * ranks) * max(1, len(gpus())) // ranks
    slots = slots_for(model.experts, options.redundant, ranks) // ranks
    return read_model(name, layers_that_fit(model, slots, int(FIT_SHARE * memory)), options.scale)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model",
        nargs="+",
        default=["qwen3_30b_a3b"],
        help="names in conf/model, NAME:LAYERS, or NAME:fit for as many layers as the GPUs hold",
    )
    parser.add_argument("--redundant", type=int, default=16, help="redundant experts a layer")
    parser.add_argument(
        "--loads",
        choices=LOADS,
        default="random",
        help="random old and new maps, or experts in order and placed for loads as skewed as those of gpt-oss-20b",
    )
    parser.add_argument("--ranks", type=int, help="default: one a GPU, or 2")
    parser.add_argument("--nodes", type=int, nargs="+", default=[1], help="nodes that the ranks are counted to")
    parser.add_argument("--policy", nargs="+", choices=POLICIES, default=["direct"])
    parser.add_argument("--scale", type=float, help="model.scale")
    parser.add_argument("--variants", help="separated by semicolons, of: " + "; ".join(VARIANTS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--staging-mib", type=float, nargs="+", default=[1024])
    parser.add_argument("--out", type=Path, help="default: a new report in docs/benchmarks")
    options = parser.parse_args()
    ranks = options.ranks or max(2, len(gpus()))
    backend = "nccl" if gpus() else "gloo"
    shared = bool(gpus()) and ranks > len(gpus())
    names = [name for name in VARIANTS if ("gloo" in name) == (backend == "gloo") or name == "reference"]
    names = [name for name in names if not (shared and "peer" in name)]
    if options.variants:
        names = [name.strip() for name in options.variants.split(";")]
    link_mib = 1024 if backend == "nccl" and not shared else 16
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.model:
            model = model_of(name, options, ranks)
            rng = np.random.default_rng(0)
            topologies = [Topology(nodes=nodes, gpus_per_node=ranks // nodes) for nodes in options.nodes]
            if options.loads == "random":
                slots = slots_for(model.experts, options.redundant, ranks)
                old, new = (random_map(rng, model.layers, model.experts, slots) for _ in range(2))
            else:
                old, new = placed_maps(rng, model, options.redundant, Topology(nodes=1, gpus_per_node=ranks))
            ways = tuple(Way.of(policy, old, new, where, model) for where in topologies for policy in options.policy)
            question = Question(
                model, old, new, ways, tuple(names), tuple(options.staging_mib), options.repeats, link_mib, shared,
                f"{folder}/journal",
            )  # fmt: skip
            print(f"== {model.name}, {model.layers} layers", flush=True)
            launch(measure, (question, Path(folder) / "found"), ranks, backend=backend, oversubscribe=shared)
            found = json.loads((Path(folder) / "found").read_text())
            print(*dict.fromkeys(r["calibrated"] for r in found), sep="\n")
            for r in found:
                print(one_line(r), flush=True)
            results += found
    text = "\n".join([*heading(ranks), *HEADER, *table(results)]) + "\n"
    out = options.out or DOCS / f"{date.today()}-update-{re.sub('[^a-z0-9]+', '-', device().lower()).strip('-')}.md"
    out.write_text(text, encoding="utf-8")
    print(f"{text}\nwritten to {out}")
    return 0 if all(r["wrong"] == 0 for r in results) else 3


if __name__ == "__main__":
    sys.exit(main())
