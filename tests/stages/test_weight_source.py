"""Expert weights in files: what every slot gets from each kind of checkpoint, and what is refused, in one sentence."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from stages import weight_files
from stages.checksum import checksum_rows
from stages.errors import BadInput
from stages.model import ITEMSIZE, ModelSpec, TensorSpec
from stages.weight_files import INDEX, WeightFiles
from stages.weight_source import copy_into, open_source, truth
from tests.stages import checkpoints
from tests.stages.checkpoints import EXPERTS, LAYERS, Checkpoint


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("name", checkpoints.ALL)
def test_every_slot_gets_its_expert(name: str, tmp_path: Path) -> None:
    made = checkpoints.ALL[name](tmp_path / "checkpoint")
    source = open_source("safetensors", made.folder, made.model)
    assert made.title in source.title
    source.check(made.layers, EXPERTS)
    which = np.array(list(np.ndindex(made.layers, EXPERTS)))
    found = truth(source, which[:, 0], which[:, 1])
    assert len(np.unique(found)) == found.size
    for n, (layer, expert) in enumerate(which.tolist()):
        expected = made.slot(layer, expert)
        assert found[n].tolist() == [int(checksum_rows(tensor[None])[0]) for tensor in expected]
        for k, (spec, tensor) in enumerate(zip(made.model.tensors, expected, strict=True)):
            slot = torch.empty(spec.shape, dtype=getattr(torch, spec.dtype))
            copy_into(slot, source.pieces(layer, expert, k))
            assert torch.equal(slot.view(torch.uint8), tensor.contiguous().view(torch.uint8)), (layer, expert, spec)


def test_separate_gate_and_up(tmp_path: Path) -> None:
    made = checkpoints.by_transformers(tmp_path, "qwen3_moe")
    w13, w2 = made.model.tensors
    half = [w13.shape[0] // 2, w13.shape[1]]
    specs = [TensorSpec("w3_weight", half, "bfloat16"), w2, TensorSpec("w1_weight", half, "bfloat16")]
    source = open_source("safetensors", tmp_path, replace(made.model, tensors=specs))
    source.check(LAYERS, EXPERTS)
    up, down, gate = (source.pieces(2, 3, k)[0] for k in range(3))
    stacked, expected_down = made.slot(2, 3)
    assert torch.equal(torch.cat([gate, up]), stacked)
    assert torch.equal(down, expected_down)


def test_scales_of_whole_tensors_are_stacked(tmp_path: Path) -> None:
    tensors = {
        f"model.layers.0.mlp.experts.0.{name}.{what}": torch.tensor(value)
        if what == "weight_scale"
        else torch.ones(2, 2)
        for name, value in (("gate_proj", 1.0), ("up_proj", 2.0), ("down_proj", 3.0))
        for what in ("weight", "weight_scale")
    }
    checkpoints.save(tmp_path, tensors)
    specs = [TensorSpec("w13_weight_scale", [2], "float32"), TensorSpec("w2_weight_scale", [1], "float32")]
    source = open_source("safetensors", tmp_path, ModelSpec(layers=1, experts=1, tensors=specs))
    source.check(1, 1)
    assert [[float(piece) for piece in source.pieces(0, 0, k)] for k in range(2)] == [[1.0, 2.0], [3.0]]


def test_other_quantisations_of_separate_experts_need_no_more_than_their_names(tmp_path: Path) -> None:
    tensors = {
        f"model.layers.0.mlp.experts.{expert}.{name}.{what}": torch.randint(0, 99, shape, dtype=torch.int32)
        for expert in range(2)
        for name in ("gate_proj", "up_proj", "down_proj")
        for what, shape in (("weight_packed", (4, 3)), ("weight_shape", (2,)))
    }
    checkpoints.save(tmp_path, tensors)
    specs = [TensorSpec("w13_weight_packed", [8, 3], "int32"), TensorSpec("w2_weight_packed", [4, 3], "int32")]
    source = open_source("safetensors", tmp_path, ModelSpec(layers=1, experts=2, tensors=specs))
    source.check(1, 2)
    assert torch.equal(source.pieces(0, 1, 0)[1], tensors["model.layers.0.mlp.experts.1.up_proj.weight_packed"])


def test_a_source_reaches_other_processes(tmp_path: Path) -> None:
    made = checkpoints.by_transformers(tmp_path, "mixtral")
    source = open_source("safetensors", made.folder, made.model)
    source.check(LAYERS, EXPERTS)
    again = pickle.loads(pickle.dumps(source))
    assert torch.equal(again.pieces(1, 2, 1)[0], source.pieces(1, 2, 1)[0])


def test_only_what_is_asked_for_is_opened(tmp_path: Path) -> None:
    made = checkpoints.by_transformers(tmp_path, "qwen3_moe")
    files = WeightFiles(tmp_path)
    needed = {files.file_of(name) for name in files.names if ".1.mlp.experts.2.down" in name}
    for path in tmp_path.glob("*.safetensors"):
        if path.name not in needed:
            path.write_bytes(b"not a safetensors file")
    source = open_source("safetensors", tmp_path, made.model)
    assert torch.equal(source.pieces(1, 2, 1)[0], made.slot(1, 2)[1])


def edit(folder: Path, change: dict[str, torch.Tensor | None], *, rename: str = "") -> None:
    """Change, drop or add tensors of `model.safetensors`."""
    tensors = {**load_file(folder / "model.safetensors"), **change}
    kept = {name.replace("model.", rename) if rename else name: t for name, t in tensors.items() if t is not None}
    save_file(kept, folder / "model.safetensors")


E2 = "model.layers.2.mlp.experts.2"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({f"{E2}.up_proj.weight": None}, "holds no tensor model.layers.2.mlp.experts.2.up_proj.weight."),
        ({f"{E2}.up_proj.weight_scale_inv": None}, f"holds no tensor {E2}.up_proj.weight_scale_inv."),
        (
            {f"{E2}.up_proj.weight": torch.zeros(48, 31).to(torch.float8_e4m3fn)},
            (
                f": model.safetensors holds {E2}.up_proj.weight as float8_e4m3fn [48, 31], and model.tensors needs "
                "float8_e4m3fn [48, 32] for w13_weight."
            ),
        ),
        (
            {f"{E2}.down_proj.weight": torch.zeros(32, 48)},
            (
                f": model.safetensors holds {E2}.down_proj.weight as float32 [32, 48], and model.tensors needs "
                "float8_e4m3fn [32, 48] for w2_weight."
            ),
        ),
        (
            {f"{E2}.gate_proj.weight_scale_inv": torch.tensor(1.0)},
            (
                f": model.safetensors holds {E2}.gate_proj.weight_scale_inv as float32 [], and model.tensors needs "
                "float32 [3, 2] for w13_weight_scale_inv."
            ),
        ),
        (
            {"model.layers.3.mlp.experts.4.gate_proj.weight": torch.zeros(1)},
            (
                ": model.safetensors holds model.layers.3.mlp.experts.4.gate_proj.weight, and the model has 4 experts: it "
                "is a checkpoint of another model."
            ),
        ),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, change: dict[str, torch.Tensor | None], message: str) -> None:
    made = checkpoints.deepseek_fp8(tmp_path, sharded=False)
    edit(tmp_path, change)
    source = open_source("safetensors", tmp_path, made.model)
    with pytest.raises(BadInput) as caught:
        source.check(made.layers, EXPERTS)
    assert str(caught.value).startswith(f"update.weights_path={tmp_path}")
    assert str(caught.value).endswith(message)


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ([TensorSpec("gate_up", [96, 32], "uint8")], "model.tensors: gate_up cannot be filled from files: a name such as"),
        ([TensorSpec("w1_weight", [48, 32], "uint8")], "w1_weight cannot be filled from a checkpoint in the naming gpt-oss"),
        ([TensorSpec("w13_weight", [96, 32], "uint8")], r"as uint8 [4, 96, 1, 16], and model.tensors needs uint8 [4, 96, 32]"),
    ],
)  # fmt: skip
def test_slots_that_no_fused_checkpoint_can_fill(tmp_path: Path, specs: list[TensorSpec], message: str) -> None:
    made = checkpoints.gpt_oss_mxfp4(tmp_path)
    with pytest.raises(BadInput) as caught:
        open_source("safetensors", tmp_path, replace(made.model, tensors=specs)).check(LAYERS, EXPERTS)
    assert message in str(caught.value)


def test_rows_that_gate_and_up_cannot_share(tmp_path: Path) -> None:
    made = checkpoints.by_transformers(tmp_path, "mixtral")
    model = replace(made.model, tensors=[TensorSpec("w13_weight", [97, 32], "bfloat16")])
    with pytest.raises(BadInput, match="w13_weight has 97 rows, which 2 tensors of a checkpoint cannot share evenly"):
        open_source("safetensors", tmp_path, model).check(LAYERS, EXPERTS)


def test_other_numbers_of_experts_and_layers(tmp_path: Path) -> None:
    fused = checkpoints.gpt_oss_mxfp4(tmp_path / "fused")
    with pytest.raises(BadInput, match=r"as uint8 \[4, 96, 1, 16\], and model\.tensors needs uint8 \[5, 96, 16\]"):
        open_source("safetensors", fused.folder, fused.model).check(LAYERS, 5)
    with pytest.raises(BadInput, match=r"holds no tensor model\.layers\.3\.mlp\.experts\.gate_up_proj_blocks\.$"):
        open_source("safetensors", fused.folder, fused.model).check(LAYERS + 1, EXPERTS)
    late = replace(fused.model, first_moe_layer=3)
    with pytest.raises(BadInput, match=r"the experts of layer 3 are not there under a known name \(Mixtral, .*\); it "):
        open_source("safetensors", fused.folder, late)


def test_a_prefix_and_a_draft_model_beside_the_model(tmp_path: Path) -> None:
    made = checkpoints.deepseek_fp8(tmp_path, sharded=False)
    draft = {f"mtp.layers.1.mlp.experts.{e}.down_proj.weight": torch.zeros(1) for e in range(EXPERTS)}
    edit(tmp_path, {**draft}, rename="language_model.model.")
    source = open_source("safetensors", tmp_path, made.model)
    source.check(made.layers, EXPERTS)
    assert torch.equal(source.pieces(0, 1, 2)[0].view(torch.uint8), made.slot(0, 1)[2].view(torch.uint8))


def test_folders_that_are_none(tmp_path: Path) -> None:
    def message() -> str:
        with pytest.raises(BadInput) as caught:
            open_source("safetensors", tmp_path / "f", ModelSpec(tensors=[TensorSpec("w2_weight", [1], "uint8")]))
        return str(caught.value)

    assert message() == f"update.weights_path={tmp_path / 'f'} does not exist."
    (tmp_path / "f").write_text("")
    assert message() == f"update.weights_path={tmp_path / 'f'} is no folder."
    (tmp_path / "f").unlink()
    (tmp_path / "f").mkdir()
    assert message() == f"update.weights_path={tmp_path / 'f'} holds no safetensors file with a tensor in it."
    save_file({"a": torch.zeros(1)}, tmp_path / "f" / "one.safetensors")
    assert message().endswith("(Mixtral, Qwen3-MoE, gpt-oss, gpt-oss 16, fused); it holds no experts at all.")
    save_file({"a": torch.zeros(1)}, tmp_path / "f" / "two.safetensors")
    assert "one.safetensors and two.safetensors both hold a, and there is no model.safetensors.index" in message()
    (tmp_path / "f" / INDEX).write_text("{}")
    assert message().endswith("cannot be read: it has no `weight_map` from tensors to files.")


def test_broken_files_are_named(tmp_path: Path) -> None:
    made = checkpoints.deepseek_fp8(tmp_path, sharded=True)
    index = json.loads((tmp_path / INDEX).read_text())["weight_map"]
    file = tmp_path / index["model.layers.1.mlp.experts.0.gate_proj.weight"]
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    with pytest.raises(BadInput, match=rf"{file.name} cannot be read as safetensors: "):
        open_source("safetensors", tmp_path, made.model).check(LAYERS, EXPERTS)
    file.unlink()
    with pytest.raises(BadInput, match=rf": the file {file.name} is not there\.$"):
        open_source("safetensors", tmp_path, made.model).check(LAYERS, EXPERTS)
    save_file({"other": torch.zeros(1)}, file)
    with pytest.raises(
        BadInput, match=rf"{INDEX} says that {file.name} holds model\.layers\.1\.\S+, and it does not\."
    ):
        open_source("safetensors", tmp_path, made.model).check(LAYERS, EXPERTS)


def digest(made: Checkpoint) -> str:
    return open_source("safetensors", made.folder, made.model).sha256()


def test_the_digest_is_that_of_the_weights_alone(tmp_path: Path) -> None:
    made = checkpoints.deepseek_fp8(tmp_path / "a")
    first = digest(made)
    (made.folder / "README.md").write_text("words")
    save_file({"a": torch.zeros(1)}, made.folder / "other.safetensors")
    assert digest(made) == first
    assert digest(checkpoints.deepseek_fp8(tmp_path / "b")) == first
    assert digest(checkpoints.deepseek_fp8(tmp_path / "c", seed=1)) != first
    assert digest(replace(made, model=replace(made.model, layers=None))) != first  # the draft layer counts then
    file = max(made.folder.glob("model-*"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert digest(made) != first


def test_dtypes_are_those_of_the_format() -> None:
    assert set(weight_files.DTYPES.values()) == set(ITEMSIZE)
