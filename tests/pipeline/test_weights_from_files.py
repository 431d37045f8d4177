"""The whole pipeline on weights from files: keyed by their content, and checked before anything runs."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from pipeline.cli import main
from pipeline.summary import Summary, read_summary
from stages.weight_source import open_source
from tests.pipeline.test_cli import _quiet_logging  # noqa: F401
from tests.stages import checkpoints
from tests.stages.checkpoints import EXPERTS, Checkpoint


@pytest.fixture
def here(store_file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(store_file.parent / "cache"))
    return store_file.parent.parent


def model_overrides(made: Checkpoint) -> list[str]:
    tensors = ", ".join(f"{{name: {t.name}, shape: {t.shape}, dtype: {t.dtype}}}" for t in made.model.tensors)
    return [
        "model=custom", f"model.layers={made.layers}", f"model.experts={EXPERTS}", "model.top_k=2",
        f"model.first_moe_layer={made.model.first_moe_layer}", f"model.tensors=[{tensors}]",
        "collect=synthetic", "topology=1x2", "place.redundant_experts=2",
    ]  # fmt: skip


def run(here: Path, made: Checkpoint, name: str, *overrides: str) -> tuple[int, Summary]:
    weights = ("update.weights=safetensors", f"update.weights_path={made.folder}")
    code = main(["run", *model_overrides(made), *weights, *overrides, f"hydra.run.dir={here / name}"])
    return code, read_summary(here / name / "summary.json")


def test_verified_then_cached_until_the_weights_change(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = checkpoints.by_transformers(here / "qwen", "qwen3_moe")
    code, first = run(here, made, "one")
    assert (code, first.status) == (0, "verified")
    (made.folder / "config.json").write_text("{}")  # counts for no weight
    moved = here / "elsewhere"
    made.folder.rename(moved)
    there = Checkpoint(moved, made.model, made.title, made.slot)
    code, second = run(here, there, "two")
    assert (code, [stage.state for stage in second.stages.values()]) == (0, ["cached"] * 5)
    other = checkpoints.by_transformers(here / "other", "qwen3_moe", seed=1)
    capsys.readouterr()
    code, third = run(here, other, "three")
    assert (code, third.status) == (0, "verified")
    out = capsys.readouterr().out
    assert "plan     cached" in out
    assert "update   runs    (input changed: update.weights_path)" in out
    assert "verify   runs    (input changed: checksums, execution, update.weights_path)" in out


def test_files_that_do_not_fit_are_refused_before_anything_runs(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = checkpoints.deepseek_fp8(here / "deepseek")
    code, summary = run(here, made, "one", "model.layers=4", "model.first_moe_layer=2")
    assert (code, summary.status, summary.stages) == (2, "failed", {})
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last == f"update.weights_path={made.folder} holds no tensor model.layers.5.mlp.experts.0.gate_proj.weight."
    code, summary = run(here, made, "two", "model.scale=0.5")
    assert (code, summary.stages) == (2, {})
    assert "needs model.scale=1" in capsys.readouterr().err


def test_saved_shards_are_the_weights_of_the_next_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = checkpoints.deepseek_fp8(here / "deepseek")
    code, first = run(here, made, "one", "update.save=shards")
    assert (code, first.status) == (0, "verified")
    shards = here / "one" / "update" / "shards"
    files = {f"rank_{rank:05}.safetensors" for rank in range(2)} | {"model.safetensors.index.json"}
    assert {path.name for path in shards.iterdir()} == files
    manifest = json.loads((here / "one" / "update" / "manifest.json").read_text())
    assert {f"shards/{name}" for name in files} <= set(manifest["outputs"])

    kept = Checkpoint(shards, made.model, made.title, made.slot)
    there = ("update.weights=shards", f"place.current={here / 'one' / 'place' / 'placement.json'}")
    code, second = run(here, kept, "two", *there, "seed=1", "update.save=shards", "verify.functional=true")
    assert (code, second.status) == (0, "verified"), capsys.readouterr().err
    metrics = second.stages["verify"].metrics
    assert metrics["outputs_compared"] > 0 == metrics["outputs_different"]
    assert re.search(r"Expert outputs +\d+ for random tokens compared, 0 different", capsys.readouterr().out)
    verdict = json.loads((here / "two" / "verify" / "verdict.json").read_text())
    assert f"Compared with every expert read anew from {shards} (shards of 2 ranks)." in verdict["checks"]

    code, third = run(here, made, "three", "update.save=shards")
    assert [stage.state for stage in third.stages.values()] == ["cached"] * 5
    assert {path.name for path in (here / "three" / "update" / "shards").iterdir()} == files

    capsys.readouterr()
    code, _ = run(here, kept, "one", *there)
    assert code == 2
    assert "is what an earlier run left in the folder that this run writes anew" in capsys.readouterr().err
    assert {path.name for path in shards.iterdir()} == files

    spoiled = here / "spoiled"
    shutil.copytree(shards, spoiled, copy_function=shutil.copyfile)
    source = open_source("shards", spoiled, made.model)
    content = source.pieces(1, 2, 3)[0].numpy().tobytes()
    for path in spoiled.glob("rank_*"):
        data = path.read_bytes()
        path.unlink()
        path.write_bytes(data.replace(content, bytes([content[0] ^ 1]) + content[1:]))
    code, last = run(here, Checkpoint(spoiled, made.model, "", made.slot), "four", *there)
    assert (code, last.stages["update"].state) == (3, "failed")
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"{spoiled} (shards of 2 ranks): tensor w2_weight_scale_inv of expert 2 in layer 1 is not what was " in error
