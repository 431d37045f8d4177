"""docs/metrics.md has every metric that a run records, and no other."""

from __future__ import annotations

import json
import re
from pathlib import Path

from pipeline.cli import main
from pipeline.store import SQLITE, Store
from stages.replay.config import RULES
from tests.docs.pages import ROOT
from tests.pipeline.test_cli import _quiet_logging  # noqa: F401

TEXT = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
SMALL = ("model=tiny", "collect=synthetic", "topology=1x2")


def documented() -> dict[str, set[str]]:
    """Section -> the metrics in the first column of its tables."""
    found = {}
    for section in re.split(r"^## ", TEXT, flags=re.MULTILINE)[1:]:
        title, _, body = section.partition("\n")
        cells = [line.split("|")[1] for line in body.splitlines() if line.startswith("| `")]
        names = [name for cell in cells for name in re.findall(r"`(\w+)`", cell)]
        assert len(names) == len(set(names)), title
        found[title] = set(names)
    rules = {name for name in found["replay"] if name.endswith("_RULE")}
    found["replay"] = found["replay"] - rules | {n.replace("RULE", rule) for n in rules for rule in RULES}
    return found


def metrics_of(folder: Path, *overrides: str) -> dict[str, set[str]]:
    assert main(["run", *overrides, f"hydra.run.dir={folder}"]) == 0
    stages = json.loads((folder / "summary.json").read_text())["stages"]
    return {name: set(stage["metrics"]) for name, stage in stages.items()}


def test_the_page_has_every_metric_and_no_other(store_file: Path, tmp_path: Path) -> None:
    whole = metrics_of(tmp_path / "whole", *SMALL, "verify.functional=true")
    limited = metrics_of(
        tmp_path / "limited", *SMALL, "run.last=place", "model.num_groups=2", "place.locality=node_groups",
        "place.target_balancedness=0.8", "place.min_gain=0.01",
    )  # fmt: skip
    replay = metrics_of(
        tmp_path / "replay", *SMALL[:2], "experiment=replay", "topology=1x2", "collect.window=null", "model.scale=1",
        "place.redundant_experts=0", "place.max_steps=2",
    )  # fmt: skip
    found = {**whole, "place": whole["place"] | limited["place"], "replay": replay["replay"]}
    page = documented()
    assert {name: names for name, names in page.items() if name != "A sweep"} == found

    metrics = _of_the_pipelines_run(tmp_path / "whole")
    named = {name for name in metrics if "." in name}
    assert named == {f"{stage}.{name}" for stage, names in whole.items() for name in names}


def test_the_page_has_the_metrics_of_a_sweep(store_file: Path, tmp_path: Path) -> None:
    assert main(["run", "-m", *SMALL, "run.last=collect", "seed=1,2", f"hydra.sweep.dir={tmp_path / 'sweep'}"]) == 0
    run_id = json.loads((tmp_path / "sweep" / "sweep.json").read_text())["run_id"]
    store = Store(f"{SQLITE}{store_file}", "moesaic", create=False)
    assert documented()["A sweep"] == set(store.run(run_id).data.metrics)


def _of_the_pipelines_run(folder: Path) -> dict[str, float]:
    run_id = json.loads((folder / "summary.json").read_text())["run_id"]
    store = Store(f"{SQLITE}{Path('outputs/mlflow.db').absolute()}", "moesaic", create=False)
    return dict(store.run(run_id).data.metrics)
