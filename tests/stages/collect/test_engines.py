"""What engines record reads back as the counts that it was made of, summed over ranks and mapped from slots to experts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.collect.dump import BLOCK_BYTES
from stages.contract import StageResult
from stages.errors import BadInput
from stages.load import LoadStats
from tests.stages.collect import engine_files as files
from tests.stages.collect.helpers import loads, model, run

RNG = np.random.default_rng(3)
COUNT = np.random.default_rng(1).integers(0, 90, (6, 3, 4))
MAP = files.some_map(3, 4, 6, RNG)


def read(path: Path, source: str = "auto", **options: object) -> tuple[StageResult, LoadStats]:
    spec = options.pop("spec", model())
    return run(path.parent, spec, source=source, path=str(path), **options)  # type: ignore[arg-type]


def message(path: Path, source: str = "auto", **options: object) -> str:
    with pytest.raises(BadInput) as error:
        read(path, source, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


@settings(deadline=None, max_examples=25, derandomize=True)
@given(st.data())
def test_every_format_gives_the_counts_it_was_made_of(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    rows, layers, experts, ranks = (data.draw(st.integers(1, most)) for most in (5, 4, 6, 3))
    slots = experts + data.draw(st.integers(0, 4))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    count = rng.integers(0, 40, (rows, layers, experts))
    count[:, :, 0] += 1
    expert_map = files.some_map(layers, experts, slots, rng)
    spec = model(layers, experts)
    folder = tmp_path_factory.mktemp("größe 1")
    for name in ("stat", "passes", "tokens", "trtllm", "vllm", "omni"):
        (folder / name).mkdir()
    files.write_stat(folder / "stat" / files.DUMP.format(time="1764000000.5"), count)
    parts = files.over_ranks(files.physical(count, expert_map, rng), ranks, rng)
    files.write_passes(folder / "passes", parts, expert_map)
    files.write_passes(folder / "tokens", parts, expert_map, per_token=True)
    files.write_trtllm(folder / "trtllm", files.over_ranks(count, ranks, rng), list(range(layers)), top_k=1)
    with_empty = files.some_map(layers, experts, slots, rng, empty=True)
    load = files.physical(count, with_empty, rng)
    lines = "".join(files.vllm_line(step, row, with_empty, ranks) for step, row in enumerate(load))
    (folder / "vllm" / "stats.jsonl").write_text(lines)
    files.write_omni(folder / "omni", count, 1)
    for name in ("stat", "passes", "tokens", "trtllm", "vllm", "omni"):
        _, found = read(folder / name, spec=spec)
        np.testing.assert_array_equal(found.logical_count, count, err_msg=name)
        if name in ("passes", "tokens", "vllm"):
            np.testing.assert_array_equal(found.current, with_empty if name == "vllm" else expert_map)


class TestTensorRT:
    def write(self, folder: Path, **options: object) -> None:
        files.write_trtllm(folder, files.over_ranks(COUNT, 3, RNG), [3, 4, 6], **options)  # type: ignore[arg-type]

    def test_layers_are_numbered_as_the_model_does(self, tmp_path: Path) -> None:
        self.write(tmp_path)
        for spec in (model(), model(3, 4, first_moe_layer=3, dense_layers=[5]), model(None, None)):
            result, load = read(tmp_path, "trtllm", spec=spec)
            np.testing.assert_array_equal(load.logical_count, COUNT)
            assert result.metrics["tokens"] == COUNT.sum(axis=(0, 2)).mean() / 2  # which meta_info.json says
        load = read(tmp_path, spec=model(2, 4, first_moe_layer=4, dense_layers=[5]))[1]
        np.testing.assert_array_equal(load.logical_count, COUNT[:, 1:])
        words = message(tmp_path, spec=model(5, 4, first_moe_layer=3, dense_layers=[5]))
        assert "has 3 layers: layers 7, 8 of the model missing" in words

    def test_what_is_missing(self, tmp_path: Path) -> None:
        from safetensors.numpy import load_file, save_file

        self.write(tmp_path)
        tensors = load_file(tmp_path / "rank1.safetensors")
        del tensors["102_4"]
        save_file(tensors, tmp_path / "rank1.safetensors")
        assert "rank1.safetensors has no iteration 102 of layer 4 (1 such tensor)" in message(tmp_path)
        result, load = read(tmp_path, on_bad="drop")
        np.testing.assert_array_equal(load.logical_count, np.delete(COUNT, 2, axis=0))
        assert "iteration 102 of layer 4" in result.note
        for rank in range(3):
            kept = {key: t for key, t in load_file(tmp_path / f"rank{rank}.safetensors").items() if key[:3] != "102"}
            save_file(kept, tmp_path / f"rank{rank}.safetensors")
        assert "iteration 102 missing between 100 and 105" in message(tmp_path)
        (tmp_path / "rank1.safetensors").unlink()
        assert "lacks rank 1, though it has rank 2" in message(tmp_path)
        save_file({"0_3": np.ones(5, int)}, tmp_path / "rank0.safetensors")
        (tmp_path / "rank2.safetensors").unlink()
        assert "0_3 is int64 of shape [5]; 4 whole numbers are expected" in message(tmp_path)
        save_file({"layer 3": np.ones(4, int)}, tmp_path / "rank0.safetensors")
        assert "has a tensor layer 3; keys are <iteration>_<layer>" in message(tmp_path)
        (tmp_path / "rank0.safetensors").unlink()
        assert "has no rank0.safetensors" in message(tmp_path)
        (tmp_path / "meta_info.json").write_text("{}")
        assert "does not say num_experts" in message(tmp_path)
        (tmp_path / "meta_info.json").unlink()
        assert "has no meta_info.json" in message(tmp_path, "trtllm")

    def test_a_cut_file(self, tmp_path: Path) -> None:
        self.write(tmp_path)
        (tmp_path / "rank2.safetensors").write_bytes((tmp_path / "rank2.safetensors").read_bytes()[:-9])
        assert "cannot be read as statistics of TensorRT-LLM" in message(tmp_path)


class TestVLLM:
    def test_the_map_may_change_meanwhile(self, tmp_path: Path) -> None:
        maps = [files.some_map(3, 4, 6, RNG, empty=True) for _ in range(3)]
        maps = [maps[0], maps[0], maps[1], maps[1], maps[2], maps[0]]
        lines = [
            files.vllm_line(step, files.physical(COUNT[step : step + 1], m, RNG)[0], m) for step, m in enumerate(maps)
        ]
        (tmp_path / "x.jsonl").write_text("\n".join(lines))
        load = read(tmp_path / "x.jsonl")[1]
        np.testing.assert_array_equal(load.logical_count, COUNT)
        np.testing.assert_array_equal(load.current, maps[-1])

    def test_broken_lines(self, tmp_path: Path) -> None:
        path = tmp_path / "x.jsonl"
        good = files.vllm_line(0, files.physical(COUNT[:1], MAP, RNG)[0], MAP)
        for line, words in (
            (good[:60], "line 2 is no JSON"),
            ("[]\n", "line 2 is no object with a record_type"),
            (good.replace('"version": 1', '"version": 3'), "line 2 is of version 3"),
            (good.replace("p2l_map", "map"), "line 2 has no p2l_map"),
            (files.vllm_line(1, COUNT[0], MAP), "expert_load of shape [3, 4] and p2l_map of [3, 6]"),
            (files.vllm_line(1, np.ones((3, 6)), MAP + 9), "slot"),
            (good, "the steps of line 2 are there more than once"),
        ):
            path.write_text(good + line)
            assert words in message(path), line
        result, load = read(path, on_bad="drop")
        np.testing.assert_array_equal(load.logical_count, COUNT[:1])
        assert result.note.count("Left out as steps that are there already: line 2 of x.jsonl") == 1
        path.write_text('{"record_type": "something else"}\n')
        assert "is empty: it has no rows" in message(path)


class TestOmni:
    def test_redundant_slots_need_the_placement(self, tmp_path: Path) -> None:
        held = np.zeros((2, 3, 4), dtype=np.int64)
        held[0, :, :3] = 1
        held[1, :, 1:] = 1
        np.save(tmp_path / "pattern.npy", held)
        folder = tmp_path / "dump"
        folder.mkdir()
        load = np.arange(1, 37).reshape(2, 3, 6)
        files.write_omni(folder, load, 2)
        assert "say with collect.current which expert each slot held" in message(folder)
        found = read(folder, "omni", current=str(tmp_path / "pattern.npy"))[1]
        expected = np.stack(
            [load[..., 0], load[..., 1] + load[..., 3], load[..., 2] + load[..., 4], load[..., 5]], axis=-1
        )
        np.testing.assert_array_equal(found.logical_count, expected)
        np.testing.assert_array_equal(found.current, np.tile([0, 1, 2, 1, 2, 3], (3, 1)))
        (folder / "activation_counts_recordstep_2_rank_1.txt").unlink()
        assert "rank 1 has no file of step 2" in message(folder, current=str(tmp_path / "pattern.npy"))
        assert read(folder, current=str(tmp_path / "pattern.npy"), on_bad="drop")[1].windows == 1

    def test_broken_files(self, tmp_path: Path) -> None:
        files.write_omni(tmp_path, COUNT, 2)
        file = tmp_path / "activation_counts_recordstep_1_rank_1.txt"
        for text, words in (
            ("1\tx\n", "no table of whole numbers"),
            ("", "is empty"),
            ("1\t2\n", "differ in their number of layers"),
        ):
            file.write_text(text)
            assert words in message(tmp_path)
        assert "is no folder of activation_counts" in message(file, "omni")


def test_adrs(tmp_path: Path) -> None:
    path = tmp_path / "history.json"
    path.write_text(json.dumps({"load_history": [{"logical_expert_load": step} for step in COUNT.tolist()]}))
    for source in ("adrs", "auto", "table"):
        np.testing.assert_array_equal(read(path, source)[1].logical_count, COUNT)
    path.write_text(json.dumps({"logical_count": COUNT.tolist()}))
    assert "has no load_history" in message(path, "adrs")


@pytest.mark.parametrize("shipped", ["deepseek_v3_32", "deepseek_v3_64"])
def test_a_shipped_placement_beside_any_loads(tmp_path: Path, shipped: str) -> None:
    spec = model(58, 256, first_moe_layer=3, top_k=8)
    _, load = run(tmp_path, spec, source="synthetic", windows=1, tokens=64, current=shipped)
    assert load.current is not None
    assert load.current.shape == (58, 288 if shipped.endswith("32") else 320)
    with pytest.raises(BadInput, match=f"collect.current={shipped} has 58 layers; the model has 3"):
        run(tmp_path, model(3, 256), source="synthetic", current=shipped)
    with pytest.raises(BadInput, match=r"collect.current=nothing\.json does not exist"):
        run(tmp_path, model(), source="synthetic", current="nothing.json")


def test_a_placement_of_any_engine_beside_the_loads(tmp_path: Path) -> None:
    from stages.engine_formats import LayerNumbers, export_placement
    from stages.engine_formats.stored import Outgoing

    spec = model(3, 4, first_moe_layer=2)
    np.save(tmp_path / "loads.npy", loads())
    for engine, name in (
        ("sglang", "a.json"),
        ("sglang", "a.pt"),
        ("trtllm", "a.yaml"),
        ("vllm", "a.jsonl"),
        ("ascend", "b.json"),
    ):
        export_placement(engine, tmp_path / name, Outgoing(MAP, 4, 2, LayerNumbers(2)))
        load = read(tmp_path / "loads.npy", "table", spec=spec, current=str(tmp_path / name))[1]
        np.testing.assert_array_equal(load.current, MAP)
    np.save(tmp_path / "more.npy", loads(experts=5))
    with pytest.raises(BadInput, match="layer 0 holds expert 4 in no slot"):
        read(tmp_path / "more.npy", "table", spec=model(3, 5, first_moe_layer=2), current=str(tmp_path / "a.json"))


def test_blocks_do_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All sources again, a row or two at a time."""
    assert BLOCK_BYTES > 1
    whole = {}
    rng = np.random.default_rng(9)
    for name in ("stat", "passes", "trtllm", "vllm", "omni"):
        (tmp_path / name).mkdir()
    files.write_stat(tmp_path / "stat" / "x.pt", COUNT)
    files.write_passes(tmp_path / "passes", files.over_ranks(files.physical(COUNT, MAP, rng), 2, rng), MAP)
    files.write_trtllm(tmp_path / "trtllm", files.over_ranks(COUNT, 2, rng), [0, 1, 2], top_k=1)
    load = files.physical(COUNT, MAP, rng)
    (tmp_path / "vllm" / "x.jsonl").write_text("".join(files.vllm_line(n, row, MAP) for n, row in enumerate(load)))
    files.write_omni(tmp_path / "omni", COUNT, 2)
    names = ("stat", "passes", "trtllm", "vllm", "omni")
    for name in names:
        whole[name] = read(tmp_path / name, window=4)[1].logical_count
    monkeypatch.setattr("stages.collect.dump.BLOCK_BYTES", 200)
    for name in names:
        np.testing.assert_array_equal(read(tmp_path / name, window=4)[1].logical_count, whole[name], err_msg=name)
