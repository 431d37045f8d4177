"""Loads of a model that is run here, from its folder and text files to the artifact."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from stages.collect.config import CollectOptions, CollectStageConfig
from stages.collect.live_model import batches
from stages.collect.model_files import ModelFiles
from stages.collect.stage import collect
from stages.contract import Count
from stages.errors import BadInput
from stages.load import LoadStats, read_load
from tests.stages import tiny_models
from tests.stages.collect.helpers import model, run
from tests.stages.test_recorder import by_hand

TEXT = "".join(f"{n} green bottles hanging on the wall, größer als {n * n}\n" for n in range(60))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("Modelle ä")
    return {family: tiny_models.save(family, root / family) for family in tiny_models.FAMILIES}


def loads_of(folder: Path, where: Path, spec: object = None, **options: object) -> LoadStats:
    text = where / "text.txt"
    if not text.exists():
        text.write_text(TEXT, encoding="utf-8")
    given = {"text": [str(text)], "batch": 3, "length": 32, **options}
    return run(where, spec or model(None, None), source="transformers", model=str(folder), **given)[1]  # type: ignore[arg-type]


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_counts_equal_a_count_by_hand(folders: dict[str, Path], tmp_path: Path, family: str) -> None:
    """… over the same sequences, each byte of the text a token, none of them padding and none of them twice."""
    load = loads_of(folders[family], tmp_path)
    ids = torch.tensor(tiny_models.byte_ids(TEXT))
    parts = [part.reshape(-1, 32) for part in ids[: len(ids) // 96 * 96].split(96)]
    rest = ids[len(ids) // 96 * 96 :]
    whole = len(rest) // 32 * 32
    parts += [part for part in (rest[:whole].reshape(-1, 32), rest[whole:][None]) if part.numel()]
    expected = [by_hand(tiny_models.build(family), part) for part in parts]
    np.testing.assert_array_equal(load.logical_count, expected)
    assert load.logical_count[:, 0].sum() == 2 * len(TEXT.encode())


def test_windows_labels_and_limits(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = folders["olmoe"]
    rows = loads_of(folder, tmp_path).logical_count
    np.testing.assert_array_equal(loads_of(folder, tmp_path, window=4).logical_count[0], rows[:4].sum(axis=0))
    by_tokens = loads_of(folder, tmp_path, window=200, window_by="tokens").logical_count
    np.testing.assert_array_equal(by_tokens[0], rows[:3].sum(axis=0))
    few = loads_of(folder, tmp_path, max_tokens=110).logical_count
    assert few[:, 0].sum() == 220
    np.testing.assert_array_equal(few[0], rows[0])
    (tmp_path / "other.txt").write_text("Something else.\n" * 9)
    both = [str(tmp_path / "text.txt"), str(tmp_path / "other.txt")]
    by_file = loads_of(folder, tmp_path, text=both, window_by="files")
    assert by_file.labels == ("text.txt", "other.txt")
    np.testing.assert_array_equal(by_file.logical_count[0], rows.sum(axis=0))
    assert by_file.logical_count[1, 0].sum() == 2 * 16 * 9


def test_it_is_the_model_that_was_asked_for(folders: dict[str, Path], tmp_path: Path) -> None:
    loads_of(folders["deepseek_v3"], tmp_path, model(3, 8, top_k=2, first_moe_layer=1))
    for spec, words in ((model(4, 8), "has 3 MoE layers, but model.layers=4"), (model(3, 9), "has 8 experts, but"),
                        (model(3, 8, top_k=4), "has 2 experts per token, but model.top_k=4")):  # fmt: skip
        with pytest.raises(BadInput, match=words):
            loads_of(folders["deepseek_v3"], tmp_path, spec)


def test_the_report_names_model_text_and_progress(folders: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    options = CollectOptions(
        source="transformers", model=str(folders["mixtral"]), text=str(tmp_path / "text.txt"), length=32
    )
    seen: list[tuple[str, float, tuple[Count, ...]]] = []
    config = CollectStageConfig(options, model(4, 8, top_k=2), 0)
    result = collect(config, {}, tmp_path, lambda message, fraction, *counts: seen.append((message, fraction, counts)))
    assert result.metrics["tokens"] == len(TEXT.encode())
    assert result.datasets[0].name == "mixtral on text.txt"
    assert "Labels: text.txt" in result.note
    fractions = [fraction for _, fraction, _ in seen]
    assert fractions == sorted(fractions)
    read = [counts[0] for message, _, counts in seen if message == "mixtral reads on cpu"]
    assert read[0].unit == "tokens"
    assert read[0].done < read[-1].done == read[-1].total == len(TEXT.encode())
    assert set(config.environment()) == {"device", "torch", "transformers"}
    assert read_load(tmp_path / "load.safetensors").labels


def test_what_cannot_be_run_is_one_sentence(folders: dict[str, Path], tmp_path: Path) -> None:
    olmoe = folders["olmoe"]
    (tmp_path / "empty.txt").touch()
    (tmp_path / "latin.txt").write_bytes("größe\n".encode("latin-1"))
    (tmp_path / "dense").mkdir()
    (tmp_path / "dense" / "config.json").write_text("{}")
    cases: list[tuple[Path, dict[str, object], str]] = [
        (olmoe, {"text": "missing.txt"}, "collect.text=missing.txt does not exist"),
        (olmoe, {"text": str(tmp_path / "empty.txt")}, "has no text"),
        (olmoe, {"text": str(tmp_path / "latin.txt")}, "is no text in UTF-8"),
        (olmoe, {"length": 129}, "collect.length=129 is not possible: the model reads at most 128 tokens"),
        (tmp_path / "nowhere", {}, "is no folder: name one with config.json"),
        (tmp_path / "dense", {}, "cannot be loaded"),
    ]
    if not torch.cuda.is_available():
        cases.append((olmoe, {"device": "cuda"}, "collect.device=cuda is not possible: torch finds no GPU here"))
    for folder, options, words in cases:
        with pytest.raises(BadInput, match=words) as error:
            loads_of(folder, tmp_path, **options)
        assert "\n" not in str(error.value)


def test_a_model_without_experts(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    LlamaForCausalLM(LlamaConfig(vocab_size=256, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                                 num_attention_heads=2, max_position_embeddings=64)).save_pretrained(tmp_path / "llama")  # fmt: skip
    tiny_models.save_tokenizer(tmp_path / "llama")
    with pytest.raises(BadInput, match="LlamaForCausalLM has no routers that are known"):
        loads_of(tmp_path / "llama", tmp_path)


def test_weights_that_are_pickled_are_not_loaded(folders: dict[str, Path], tmp_path: Path) -> None:
    import shutil

    folder = shutil.copytree(folders["olmoe"], tmp_path / "pickled")
    (folder / "model.safetensors").unlink()
    torch.save(tiny_models.build("olmoe").state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(BadInput, match="cannot be loaded"):
        loads_of(folder, tmp_path)


def test_large_texts_are_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from examples.train_small_moe import byte_tokenizer

    monkeypatch.setattr("stages.collect.live_model.CHARACTERS_AT_ONCE", 50)
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    options = CollectOptions(source="transformers", model="m", text=str(tmp_path / "text.txt"), batch=2, length=7)
    found = list(batches(byte_tokenizer(), [tmp_path / "text.txt"], options))
    assert torch.cat([batch.ids.flatten() for batch in found]).tolist() == tiny_models.byte_ids(TEXT)
    assert found[-1].done == 1
    assert all(batch.ids.shape == (2, 7) for batch in found[:-2])


def test_without_the_library_it_says_how_to_get_it(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "sys.modules['transformers'] = None\n"
        "from stages.collect.live_model import library\n"
        "from stages.errors import BadInput\n"
        "try:\n    library()\nexcept BadInput as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'moesaic[transformers]'" in done.stdout


def test_the_key_is_of_the_files_that_count(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = Path(shutil.copytree(folders["olmoe"], tmp_path / "copy"))
    before = ModelFiles(folder).sha256()
    assert before == ModelFiles(folders["olmoe"]).sha256() != ModelFiles(folders["mixtral"]).sha256()
    (folder / "README.md").write_text("x")
    (folder / "held_out.txt").write_text("x")
    assert ModelFiles(folder).sha256() == before
    with (folder / "model.safetensors").open("r+b") as stream:
        stream.seek(-1, 2)
        stream.write(b"\xff")
    assert ModelFiles(folder).sha256() != before
