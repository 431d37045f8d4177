"""PYTHONPATH=. python tests/gpu/report_update.py --model qwen3_30b_a3b --layers 48 --out update.md

Runs the update stage on all GPUs of this machine (one rank each, or `--ranks N` that share them), between random maps
with redundant experts, compares every slot with the truth, and writes a report. Needs neither Hydra nor MLflow.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from stages.checksum_table import read_checksums
from stages.direct import direct_transfers
from stages.execution import Execution, read_execution
from stages.expert_map import ExpertMap, slots_for
from stages.model import ModelSpec, TensorSpec
from stages.placement import Placement, write_placement
from stages.synthetic import truth
from stages.topology import Topology
from stages.transfers import write_transfers
from stages.update.config import UpdateOptions, UpdateStageConfig
from stages.update.machine import gpus
from stages.update.stage import update

MODELS = Path(__file__).parents[2] / "conf" / "model"
HEADER = (
    "model", "layers", "slots", "ranks", "update_seconds", "moved_bytes", "effective_gb_per_s", "link_gb_per_s",
    "link_efficiency", "staging_bytes", "checksums_compared", "mismatches",
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    model: ModelSpec
    slots: int
    execution: Execution
    compared: int
    mismatches: int

    def row(self) -> list[str]:
        e = self.execution
        return [
            *(self.model.name, str(self.model.layers), str(self.slots), str(e.ranks)),
            *(f"{e.update_seconds:.4f}", f"{e.moved_bytes:,}", f"{e.effective_gb_per_s:.2f}"),
            *(f"{e.link_gb_per_s:.2f}", f"{e.link_efficiency:.1%}", f"{e.staging_bytes:,}"),
            *(f"{self.compared:,}", str(self.mismatches)),
        ]


def read_model(name: str, layers: int | None) -> ModelSpec:
    values = yaml.safe_load((MODELS / f"{name}.yaml").read_text(encoding="utf-8"))
    values.pop("defaults", None)
    tensors = [TensorSpec(**tensor) for tensor in values.pop("tensors")]
    return ModelSpec(**{**values, "layers": layers or values["layers"]}, tensors=tensors)


def random_map(rng: np.random.Generator, layers: int, experts: int, slots: int) -> ExpertMap:
    extra = rng.integers(0, experts, (layers, slots - experts))
    return rng.permuted(np.hstack([np.tile(np.arange(experts), (layers, 1)), extra]), axis=1)


def run(model: ModelSpec, options: argparse.Namespace) -> Outcome:
    assert model.layers is not None
    assert model.experts is not None
    ranks = options.ranks or max(1, len(gpus()))
    config = UpdateStageConfig(
        update=UpdateOptions(oversubscribe=ranks > len(gpus()), link_mib=options.link_mib),
        model=model,
        topology=Topology(nodes=options.nodes, gpus_per_node=ranks // options.nodes),
        seed=options.seed,
    )
    rng = np.random.default_rng(options.seed)
    slots = slots_for(model.experts, options.redundant, ranks)
    old, new = (random_map(rng, model.layers, model.experts, slots) for _ in range(2))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_placement(folder, Placement(new, old, model.experts))
        plan = direct_transfers(old, new, ranks, config.topology.gpus_per_node, model.expert_bytes)
        write_transfers(folder, plan)
        inputs = {"placement": folder / "placement.safetensors", "transfers": folder / "transfers.parquet"}
        update(
            config,
            inputs,
            folder,
            lambda message, fraction, *counts: print(f"{fraction:4.0%} {message}", file=sys.stderr),
        )
        execution = read_execution(folder / "execution.json")
        table = read_checksums(folder / "checksums.parquet")
    layer, expert = (index.ravel() for index in np.indices((model.layers, model.experts)))
    device = "cuda" if execution.backend == "nccl" else "cpu"
    expected = truth(model.scaled_tensors(), options.seed, layer, expert, device)
    expected = expected.reshape(model.layers, model.experts, -1)
    rows = np.arange(model.layers)[:, None]
    wrong = (table.before != expected[rows, old]).sum() + (table.after != expected[rows, new]).sum()
    return Outcome(model, slots, execution, table.before.size + table.after.size, int(wrong))


def report(outcomes: list[Outcome]) -> str:
    e = outcomes[0].execution
    lines = [
        "# The update, executor `reference`",
        "",
        f"{e.hosts} host, {len(gpus())} x {e.device}, {e.backend} {e.nccl or ''}, torch {e.torch}.".replace(" ,", ","),
        "Random old and new maps; every slot hashed before and after and compared with the generator.",
        "",
        f"    PYTHONPATH=. python {shlex.join(sys.argv)}",
        "",
        "| " + " | ".join(HEADER) + " |",
        "|" + "---|" * len(HEADER),
        *("| " + " | ".join(outcome.row()) + " |" for outcome in outcomes),
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["qwen3_30b_a3b"], help="names in conf/model")
    parser.add_argument("--layers", type=int, help="MoE layers (default: all of the model's)")
    parser.add_argument("--redundant", type=int, default=16, help="redundant experts a layer")
    parser.add_argument("--ranks", type=int, help="default: one a GPU")
    parser.add_argument("--nodes", type=int, default=1, help="nodes that the ranks are counted to")
    parser.add_argument("--link-mib", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="where the report goes")
    options = parser.parse_args()
    outcomes = [run(read_model(name, options.layers), options) for name in options.model]
    text = report(outcomes)
    print(text)
    if options.out:
        options.out.write_text(text, encoding="utf-8")
    return 0 if all(outcome.mismatches == 0 for outcome in outcomes) else 3


if __name__ == "__main__":
    sys.exit(main())
