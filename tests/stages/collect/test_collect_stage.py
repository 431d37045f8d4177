"""The stage, source by source: what it writes, and what it says about it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from stages.collect.config import CollectOptions, CollectStageConfig
from stages.collect.samples import DATA, SAMPLES
from stages.collect.stage import collect
from stages.errors import BadInput
from tests.stages.collect.helpers import loads, model, run, run_table

GPT_OSS = model(24, 32, top_k=4)


def test_gpt_oss_sample(tmp_path: Path) -> None:
    result, load = run(tmp_path, GPT_OSS)
    path = DATA / "gpt_oss_20b_counts.npz"
    with np.load(path) as file:
        np.testing.assert_array_equal(load.logical_count, file["logical_count"])
        assert load.labels == tuple(file["label"].tolist())
        tokens = int(file["tokens"].sum())
    total = load.logical_count.sum(axis=0)
    imbalance = (total.max(axis=1) / total.mean(axis=1)).max()
    assert result.metrics == {"windows": 539, "tokens": tokens, "imbalance": pytest.approx(imbalance)}
    assert result.files == ("load.safetensors", "load.csv")
    assert all((tmp_path / "collect" / name).is_file() for name in result.files)
    assert result.tags == {"source": "sample", "sample": "gpt_oss_20b", "labels": "539"}
    (dataset,) = result.datasets
    assert dataset.name == "gpt_oss_20b"
    assert dataset.source.startswith("AmanPriyanshu/GPT-OSS-MoE-ExpertFingerprinting@72b368f (Apache-2.0)")
    assert dataset.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert dataset.profile == {}  # a run with a label or other windows has the same data set
    assert "Most skewed: layer 22, whose expert 25 gets 4.62 times the mean" in result.note
    assert "mmlu_test (201)" in result.note
    assert str(DATA) not in result.note + dataset.source


@pytest.mark.parametrize(("sample", "experts"), [("olmoe", 64), ("mixtral", 8)])
def test_samples_of_three_layers(tmp_path: Path, sample: str, experts: int) -> None:
    result, load = run(tmp_path, model(None, None), sample=sample)
    key = SAMPLES[sample].key
    with np.load(DATA / "olmoe_mixtral_counts.npz") as file:
        for n, label in enumerate(load.labels):
            np.testing.assert_array_equal(load.logical_count[n], file[key + label])
    assert load.labels == ("arxiv", "book", "c4")
    assert load.experts == experts
    assert "allenai/OLMoE@357454f" in result.note
    assert "routed tokens (model.top_k is not known)" in result.note
    assert result.metrics["tokens"] == load.logical_count[:, 0].sum()
    assert run(tmp_path, model(3, experts, top_k=2), sample=sample, label="c4")[1].labels == ("c4",)


@pytest.mark.parametrize(
    ("label", "windows"),
    [("mmlu_test", 201), ("mmlu*", 443), ("*anatomy*finished=True*", 6), ("tulu3", 4), ("MMLU*", 0), ("mmlu_tes?", 0)],
)
def test_choosing_by_label(tmp_path: Path, label: str, windows: int) -> None:
    if not windows:
        with pytest.raises(
            BadInput, match=r"matches no window of sample gpt_oss_20b; available are Polyglot.*mmlu_test"
        ):
            run(tmp_path, GPT_OSS, label=label)
        return
    result, load = run(tmp_path, GPT_OSS, label=label)
    with np.load(DATA / "gpt_oss_20b_counts.npz") as file:
        kept = [name in load.labels for name in file["label"]]
        np.testing.assert_array_equal(load.logical_count, file["logical_count"][kept])
    assert load.windows == len(load.labels) == sum(kept) == windows
    assert result.metrics["windows"] == windows


def test_merging_windows(tmp_path: Path) -> None:
    count, labels = loads(7), list("aabcdef")
    np.savez(tmp_path / "loads.npz", logical_count=count, label=np.array(labels))
    result, load = run_table(tmp_path / "loads.npz", model(top_k=2), window=2)
    merged = [count[0] + count[1], count[2] + count[3], count[4] + count[5], count[6]]
    np.testing.assert_array_equal(load.logical_count, merged)
    assert load.labels == ("a", "b … c", "d … e", "f")
    assert result.metrics["windows"] == 4
    assert result.metrics["tokens"] == count.sum(axis=(0, 2)).mean() / 2
    assert "Every 2 rows" in result.note
    np.testing.assert_array_equal(run_table(tmp_path / "loads.npz", model(), window=1)[1].logical_count, count)
    whole = run_table(tmp_path / "loads.npz", model(), window=100)[1]
    np.testing.assert_array_equal(whole.logical_count, count.sum(axis=0)[None])
    one = run_table(tmp_path / "loads.npz", model(), window=3, label="[bc]")[1]
    np.testing.assert_array_equal(one.logical_count, count[2:4].sum(axis=0)[None])


def test_dense_layers_are_dropped_and_said(tmp_path: Path) -> None:
    count = loads(2, layers=6)
    current = np.tile(np.arange(4), (6, 1))
    current[[0, 2, 5]] = -1
    np.savez(tmp_path / "loads.npz", logical_count=count, physical_to_logical_map=current)
    result, load = run_table(tmp_path / "loads.npz", model(3, 4, first_moe_layer=1, dense_layers=[2, 5]))
    np.testing.assert_array_equal(load.logical_count, count[:, [1, 3, 4]])
    np.testing.assert_array_equal(load.current, current[[1, 3, 4]])
    assert result.tags["dense_rows_dropped"] == "3"
    assert "Dropped as dense layers of the model: layers 0, 2, 5 of the source" in result.note


def test_tables_numbered_as_the_engine_does(tmp_path: Path) -> None:
    rows = [f"{layer},{expert},{1 + layer + expert}\n" for layer in (1, 3, 4) for expert in range(4)]
    (tmp_path / "loads.csv").write_text("layer,expert,count\n" + "".join(rows))
    result, load = run_table(tmp_path / "loads.csv", model(3, 4, first_moe_layer=1, dense_layers=[2, 5]))
    np.testing.assert_array_equal(load.logical_count[0], 1 + np.add.outer([1, 3, 4], range(4)))
    assert result.tags["dense_rows_dropped"] == "3"


def test_rows_never_filled_are_dropped_and_said(tmp_path: Path) -> None:
    count = loads(9)
    count[[0, 4, 8]] = 0
    count[2, 1] = 0  # a window may leave one layer out
    np.savez(tmp_path / "loads.npz", logical_count=count, label=np.array(list("abcdefghi")))
    result, load = run_table(tmp_path / "loads.npz", model())
    np.testing.assert_array_equal(load.logical_count, count[[1, 2, 3, 5, 6, 7]])
    assert load.labels == tuple("bcdfgh")
    assert result.tags["empty_rows_dropped"] == "3"
    assert "Dropped as never filled: rows 0, 4, 8 of the source" in result.note


def test_table_names_its_file(tmp_path: Path) -> None:
    path = tmp_path / "loads.npy"
    np.save(path, loads())
    result, _ = run_table(path, model())
    (dataset,) = result.datasets
    assert (dataset.name, dataset.source) == ("loads.npy", str(path))
    assert dataset.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert result.tags == {"source": "table", "labels": "0"}


def test_home_folder_in_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    np.save(tmp_path / "loads.npy", loads())
    _, load = run(tmp_path, model(), source="table", path="~/loads.npy")
    np.testing.assert_array_equal(load.logical_count, loads())


def test_synthetic(tmp_path: Path) -> None:
    spec = model(5, 16, top_k=2)
    options = {"source": "synthetic", "windows": 6, "tokens": 100, "distribution": "zipf", "exponent": 0.5}
    result, load = run(tmp_path, spec, **options)
    assert load.logical_count.shape == (6, 5, 16)
    assert (load.logical_count.sum(axis=2) == 200).all()
    assert result.metrics["tokens"] == 600
    (dataset,) = result.datasets
    artifact = tmp_path / "collect" / "load.safetensors"
    assert dataset.sha256 == hashlib.sha256(artifact.read_bytes()).hexdigest()
    assert dataset.source == "generator (zipf, exponent 0.5, drift 0.1)"
    assert dataset.profile == {"windows": 6, "layers": 5, "experts": 16, "tokens": 600}
    np.testing.assert_array_equal(run(tmp_path, spec, **options)[1].logical_count, load.logical_count)
    assert not np.array_equal(run(tmp_path, spec, seed=1, **options)[1].logical_count, load.logical_count)
    merged = run(tmp_path, spec, window=3, **options)[1]
    np.testing.assert_array_equal(merged.logical_count[0], load.logical_count[:3].sum(axis=0))
    assert (run(tmp_path, model(5, 16), **options)[1].logical_count.sum(axis=2) == 100).all()


@pytest.mark.parametrize(("spec", "key"), [(model(None, 4), "model.layers"), (model(3, None), "model.experts")])
def test_synthetic_needs_a_size(tmp_path: Path, spec: object, key: str) -> None:
    with pytest.raises(BadInput, match=f"{key}=null is not possible with collect.source=synthetic"):
        run(tmp_path, spec, source="synthetic")  # type: ignore[arg-type]


def test_figures_show_every_expert_and_the_skew(tmp_path: Path) -> None:
    np.save(tmp_path / "loads.npy", loads())
    result, load = run_table(tmp_path / "loads.npy", model())
    assert sorted(result.figures) == ["expert_load", "skew"]
    shown = result.figures["expert_load"].axes[0].images[0].get_array()
    total = load.total()
    np.testing.assert_allclose(shown, total / total.mean(axis=1, keepdims=True))
    even, mean, worst = (line.get_ydata() for line in result.figures["skew"].axes[0].lines)
    np.testing.assert_allclose(even, 25)
    assert mean.sum() == worst.sum() == pytest.approx(100)
    assert worst[0] == pytest.approx(result.metrics["imbalance"] * 25)


def test_progress_goes_from_nothing_upwards(tmp_path: Path) -> None:
    seen: list[float] = []
    config = CollectStageConfig(CollectOptions(sample="mixtral"), model(3, 8), 0)
    collect(config, {}, tmp_path, lambda message, fraction, *counts: seen.append(fraction))
    assert seen[0] == 0
    assert seen == sorted(seen)
    assert seen[-1] <= 1


def test_shipped_files_are_named_in_the_notice() -> None:
    notice = (Path(__file__).parents[3] / "NOTICE").read_text(encoding="utf-8")
    assert {path.name for path in DATA.iterdir()} == {word for word in notice.split() if word.endswith(".npz")}
    for source in ("72b368f", "357454f", "c8bc2bb"):
        assert source in notice
