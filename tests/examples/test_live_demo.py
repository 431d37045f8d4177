"""What `make demo-live` runs, on a model that is trained for fewer steps: learned routing, real weights, equal logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.numpy import load_file, save_file

import conf
from examples import logits_through_placement, train_small_moe
from pipeline.cli import main
from stages.load import read_load
from stages.routers import find_routers
from tests.pipeline.test_cli import _quiet_logging  # noqa: F401

STEPS = 40
MOE_LAYERS = [1, 2, 3]


@pytest.fixture(scope="module")
def small_moe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "small_moe"
    train_small_moe.main([str(folder), "--steps", str(STEPS)])
    return folder


def load(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).eval()


def choices(model: Any, ids: torch.Tensor) -> np.ndarray:
    """[L, tokens, k]: the experts that every token goes to, in order of their numbers."""
    found: list[np.ndarray] = []
    handles = [router.watch(lambda ids: found.append(np.sort(ids.numpy()))) for router in find_routers(model)]
    with torch.no_grad():
        model(input_ids=ids)
    for handle in handles:
        handle.remove()
    return np.stack(found)


def test_it_learned_something_and_so_did_its_routers(small_moe: Path) -> None:
    """… of text that Python ships, of which a tenth is kept from it."""
    training, held_out = train_small_moe.texts()
    assert held_out not in training
    assert 0.05 < len(held_out) / len(training) < 0.2
    assert (small_moe / "held_out.txt").read_text(encoding="utf-8") == held_out
    unseen = torch.tensor(train_small_moe.byte_tokenizer()(held_out)["input_ids"])
    torch.manual_seed(0)
    untrained = train_small_moe.small_moe().eval()
    assert train_small_moe.held_out_loss(untrained, unseen) > 5
    trained = load(small_moe)
    assert train_small_moe.held_out_loss(trained, unseen) < 3.2
    drawn, learned = (choices(model, unseen[:512].reshape(4, 128)) for model in (untrained, trained))
    assert drawn.shape == learned.shape == (len(MOE_LAYERS), 512, 2)
    assert (drawn != learned).any(axis=2).mean() > 0.5


def test_the_experiment_knows_the_model(small_moe: Path) -> None:
    value = yaml.safe_load((Path(conf.__file__).parent / "experiment" / "live.yaml").read_text(encoding="utf-8"))
    made = load(small_moe).config
    model = value["model"]
    assert (model["experts"], model["top_k"]) == (made.num_experts, made.num_experts_per_tok)
    assert model["layers"] + model["first_moe_layer"] == made.num_hidden_layers
    shapes = {tensor["name"]: tensor["shape"] for tensor in model["tensors"]}
    hidden, inner = made.hidden_size, made.moe_intermediate_size
    assert shapes == {"w13_weight": [2 * inner, hidden], "w2_weight": [hidden, inner]}


def test_loads_placement_weights_and_logits(
    small_moe: Path, store_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here = store_file.parent.parent
    monkeypatch.setenv("XDG_CACHE_HOME", str(here / "cache"))
    (here / "outputs" / "small_moe").symlink_to(small_moe)
    run = here / "outputs" / "live"
    overrides = ["collect.max_tokens=8192", "topology=1x2", f"hydra.run.dir={run}"]
    assert main(["run", "experiment=live", *overrides]) == 0, capsys.readouterr().err
    summary = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "verified"
    loads = read_load(run / "collect" / "load.safetensors").logical_count
    assert (loads.sum(axis=(0, 2)) == 8192 * 2).all()
    assert loads.sum(axis=0).max() > 2 * loads.sum(axis=0).mean()
    metrics = summary["stages"]["place"]["metrics"]
    assert metrics["balancedness"] > metrics["balancedness_before"]
    assert metrics["moved_slots"] > 0
    capsys.readouterr()
    arguments = [str(small_moe), str(run)]
    assert logits_through_placement.main(arguments) == 0
    assert ", 0 different" in capsys.readouterr().out

    # That it finds a slot which holds another expert's weights, wherever it is.
    shard = run / "update" / "shards" / "rank_00001.safetensors"
    tensors = load_file(shard)
    shard.unlink()  # it may be linked into the store
    name = "rank_00001.layers.3.w2_weight"
    save_file({**tensors, name: np.roll(tensors[name], 1, axis=0)}, shard)
    assert logits_through_placement.main(arguments) == 3
    assert ", 0 different" not in capsys.readouterr().out


def test_it_says_what_is_missing(small_moe: Path, store_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = store_file.parent.parent
    assert logits_through_placement.main([str(small_moe), str(here)]) == 1
    assert "No such file" in capsys.readouterr().err
