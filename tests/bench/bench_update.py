"""make bench-update, or: PYTHONPATH=. python -m tests.bench.bench_update --model qwen3_30b_a3b --repeats 5 --out report.md

The executors and transports side by side on all GPUs of this machine (without GPUs, on `--ranks` CPU ranks): random old
and new maps, the same for all, run in turn, every slot compared with the truth after each update.
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

import torch

from stages.update.launch import launch
from stages.update.machine import cpu_name, gpus, nccl_version
from tests.bench.update_ranks import VARIANTS, Question, measure
from tests.gpu.models import read_model

DOCS = Path(__file__).parents[2] / "docs" / "benchmarks"


def one_line(r: dict[str, Any]) -> str:
    split = " ".join(f"{what} {seconds * 1e3:.1f}" for what, seconds in r["split"].items())
    return (
        f"{r['variant']:22} {r['seconds'] * 1e3:8.2f} ms (predicted {r['predicted'] * 1e3:.2f}) {r['gb_per_s']:6.1f} GB/s {r['efficiency']:6.1%} of {r['link']:.0f}  wrong {r['wrong']}  "
        f"batches {r['batches']}  compile {r['compile'] * 1e3:.0f} ms  peak {r['peak'] / 1e6:.0f} MB  {split}"
    )


def table(results: list[dict[str, Any]]) -> list[str]:
    """A line for each model and variant: medians, and the spread, over the repeats but the first."""
    lines = []
    for model, variant in dict.fromkeys((r["model"], r["variant"]) for r in results):
        mine = [
            r for r in results if ((r["model"], r["variant"]) == (model, variant) and r["repeat"]) or len(results) == 1
        ]
        seconds = [float(r["seconds"]) * 1e3 for r in mine]
        base = [
            float(r["seconds"]) * 1e3
            for r in results
            if r["model"] == model and r["variant"] == "reference" and r["repeat"]
        ]
        ratio = f"{statistics.median(base) / statistics.median(seconds):.1f} x" if base else ""
        row = mine[0]
        split = {
            k: statistics.median(float(r["split"].get(k, 0)) for r in mine) * 1e3 for k in row["split"] if k != "layer"
        }
        lines.append(
            f"| {model} | {variant} | {statistics.median(seconds):.2f} ({min(seconds):.2f}–{max(seconds):.2f}) | "
            f"{float(row['predicted']) * 1e3:.2f} ({float(row['predicted']) * 1e3 / statistics.median(seconds) - 1:+.0%}) | "
            f"{statistics.median(float(r['gb_per_s']) for r in mine):.1f} | "
            f"{statistics.median(float(r['link']) for r in mine):.0f} | "
            f"{statistics.median(float(r['efficiency']) for r in mine):.1%} | {ratio} | "
            f"{float(row['staging']) / 2**20:.0f} | {float(max(r['peak'] for r in mine)) / 2**20:.0f} | {row['batches']} | "
            + " / ".join(f"{split.get(k, 0):.1f}" for k in ("pack", "network", "hash", "commit", "wait"))
            + f" | {sum(int(r['wrong']) for r in mine)} |"
        )
    return lines


COLUMNS = (
    "model", "variant", "update, ms: median (least–most)", "predicted, ms", "GB/s into the busiest rank", "link GB/s", "link efficiency",
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["qwen3_30b_a3b"], help="names in conf/model, or NAME:LAYERS")
    parser.add_argument("--redundant", type=int, default=16, help="redundant experts a layer")
    parser.add_argument("--ranks", type=int, help="default: one a GPU, or 2")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--scale", type=float, help="model.scale")
    parser.add_argument("--variants", help="comma-separated, of: " + "; ".join(VARIANTS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--staging-mib", type=float, default=1024)
    parser.add_argument("--least-mib", type=float, default=64)
    parser.add_argument("--out", type=Path, help="default: a new report in docs/benchmarks")
    options = parser.parse_args()
    ranks = options.ranks or max(2, len(gpus()))
    backend = "nccl" if gpus() else "gloo"
    shared = bool(gpus()) and ranks > len(gpus())
    names = [name for name in VARIANTS if ("gloo" in name) == (backend == "gloo") or name == "reference"]
    names = [name for name in names if not (shared and "peer" in name)]
    chosen = tuple(v.strip() for v in options.variants.split(";")) if options.variants else tuple(names)
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.model:
            name, _, layers = name.partition(":")
            model = read_model(name, int(layers) if layers else None, options.scale)
            question = Question(
                model, options.redundant, chosen, options.repeats, options.staging_mib, options.least_mib,
                1024 if backend == "nccl" and not shared else 16, shared, options.nodes, f"{folder}/journal",
            )  # fmt: skip
            print(f"== {name}", flush=True)
            launch(measure, (question, Path(folder) / "found"), ranks, backend=backend, oversubscribe=shared)
            found = json.loads((Path(folder) / "found").read_text())
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
