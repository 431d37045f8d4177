"""What SGLang records: expert counts of statistics, and of single passes and tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.stages.collect import engine_files as files
from tests.stages.collect.helpers import model
from tests.stages.collect.test_engines import COUNT, MAP, RNG, message, read
from tests.stages.test_untrusted import Bomb


class TestSGLang:
    def test_rows_never_filled_are_dropped_and_dense_rows_too(self, tmp_path: Path) -> None:
        ring = np.zeros((9, 5, 4), dtype=int)
        ring[[1, 4, 5, 6], 2:] = COUNT[:4]  # rows 0 and 1 of the model's layers are dense
        files.write_stat(tmp_path / "x.pt", ring)
        result, load = read(tmp_path / "x.pt", "sglang", spec=model(3, 4, first_moe_layer=2))
        np.testing.assert_array_equal(load.logical_count, COUNT[:4])
        assert result.tags["empty_rows_dropped"] == "5"
        assert result.tags["dense_rows_dropped"] == "2"

    def test_a_custom_model_is_told_about_dense_layers(self, tmp_path: Path) -> None:
        ring = np.zeros((2, 5, 4), dtype=int)
        ring[:, 2:] = COUNT[:2]
        files.write_stat(tmp_path / "x.pt", ring)
        words = message(tmp_path / "x.pt", spec=model(None, None))
        assert "layers 0, 1 have no tokens at all" in words
        assert "model.layers=3 model.first_moe_layer=2" in words

    def test_several_dumps_are_read_in_order_of_time_and_as_files(self, tmp_path: Path) -> None:
        for n, time in enumerate(("999.5", "1000.25", "10000.0")):
            files.write_stat(tmp_path / files.DUMP.format(time=time), COUNT[2 * n : 2 * n + 2])
        np.testing.assert_array_equal(read(tmp_path)[1].logical_count, COUNT)
        by_file = read(tmp_path, window_by="files")[1]
        np.testing.assert_array_equal(by_file.logical_count, COUNT.reshape(3, 2, 3, 4).sum(axis=1))

    def test_files_of_other_ranks_say_the_same_again(self, tmp_path: Path) -> None:
        for rank in range(3):
            files.write_stat(tmp_path / f"rank{rank}.pt", COUNT, rank)
        result, load = read(tmp_path)
        np.testing.assert_array_equal(load.logical_count, COUNT)
        assert "Left out as the same counts again: files of rank 1, 2" in result.note

    def test_a_placement_beside_the_loads(self, tmp_path: Path) -> None:
        files.write_stat(tmp_path / "x.pt", COUNT, physical_to_logical_map=torch.from_numpy(MAP))
        np.testing.assert_array_equal(read(tmp_path / "x.pt")[1].current, MAP)

    def test_tensors_of_a_gpu_load_on_the_cpu(self, tmp_path: Path) -> None:
        """A dump names the device of its tensors: the same archive with `cuda:0` in place of `cpu`."""
        import zipfile

        files.write_stat(tmp_path / "cpu.pt", COUNT)
        with zipfile.ZipFile(tmp_path / "cpu.pt") as source, zipfile.ZipFile(tmp_path / "gpu.pt", "w") as target:
            for item in source.infolist():
                content = source.read(item)
                if item.filename.endswith("data.pkl"):
                    assert b"X\x03\x00\x00\x00cpu" in content
                    content = content.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")
                target.writestr(item.filename, content)
        with pytest.raises(RuntimeError, match="CUDA"):
            torch.load(tmp_path / "gpu.pt", weights_only=True)
        np.testing.assert_array_equal(read(tmp_path / "gpu.pt")[1].logical_count, COUNT)

    def test_old_files_without_an_archive(self, tmp_path: Path) -> None:
        value = {"rank": 0, "logical_count": torch.from_numpy(COUNT)}
        torch.save(value, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
        bad = np.concatenate([COUNT, COUNT])  # read twice, since something is wrong with it
        torch.save({"logical_count": torch.from_numpy(bad)}, tmp_path / "b.pt", _use_new_zipfile_serialization=False)
        np.testing.assert_array_equal(read(tmp_path / "old.pt")[1].logical_count, COUNT)
        np.testing.assert_array_equal(read(tmp_path / "b.pt", on_bad="drop")[1].logical_count, COUNT)

    def test_a_hostile_file_is_refused_and_nothing_runs(self, tmp_path: Path) -> None:
        for n, value in enumerate(
            ({"logical_count": torch.ones(2, 3, 4), "x": Bomb(tmp_path / "trace")}, Bomb(tmp_path / "trace"))
        ):
            path = tmp_path / f"{n}.pt"
            torch.save(value, path)
            for source in ("auto", "sglang"):
                assert "which are never loaded: nothing of it was run" in message(path, source)
        assert "never loaded" in message(tmp_path)
        assert not (tmp_path / "trace").exists()

    def test_broken_and_foreign_files(self, tmp_path: Path) -> None:
        path = tmp_path / "x.pt"
        for value, words in (
            ([1, 2], "holds a list, and no dump"),
            ({"weights": torch.ones(2)}, "has neither logical_count nor records, only weights"),
            ({"physical_to_logical_map": torch.zeros(3, 4)}, "holds a placement and no loads"),
            ({"logical_count": [[1]]}, "logical_count is a list; a tensor is expected"),
            ({"logical_count": torch.ones(4)}, r"shape [4]; allowed are"),
            ({"logical_count": torch.ones(2, 3, 5)}, "has 5 experts"),
            ({"logical_count": torch.full((2, 3, 4), 1.5)}, "layer 0 has counts that are not whole numbers"),
            ({"records": [], "last_physical_to_logical_map": torch.zeros(3, 4)}, "dumped before any forward pass"),
            ({"records": [{"rank": 0}]}, "record 0 has no forward_pass_id"),
        ):  # fmt: skip
            torch.save(value, path)
            assert words in message(path), value
        content = path.read_bytes()
        path.write_bytes(content[:-200])
        assert "broken or cut off" in message(path)
        path.write_bytes(b"")
        assert "is empty" in message(path)
        (tmp_path / "nothing").mkdir()
        assert "has no .pt file" in message(tmp_path / "nothing", "sglang")
        assert "no folder of loads that is known" in message(tmp_path / "nothing")


class TestPasses:
    def write(self, folder: Path, ranks: int = 3, count: np.ndarray = COUNT, **options: object) -> list[np.ndarray]:
        rng = np.random.default_rng(5)
        parts = files.over_ranks(files.physical(count, MAP, rng), ranks, rng)
        files.write_passes(folder, parts, MAP, **options)  # type: ignore[arg-type]
        return parts

    def test_one_file_is_its_rank_alone(self, tmp_path: Path) -> None:
        parts = self.write(tmp_path)
        result, load = read(sorted(tmp_path.iterdir())[1])
        expected = np.zeros_like(COUNT)
        for layer in range(3):
            np.add.at(expected.transpose(1, 2, 0)[layer], MAP[layer], parts[1].transpose(1, 2, 0)[layer])
        np.testing.assert_array_equal(load.logical_count, expected)
        assert "The counts are those of rank 1 alone" in result.note

    def test_passes_that_a_rank_lacks(self, tmp_path: Path) -> None:
        parts = self.write(tmp_path)
        value = torch.load(sorted(tmp_path.iterdir())[1], weights_only=True)
        del value["records"][2]
        torch.save(value, sorted(tmp_path.iterdir())[1])
        assert "rank 1 has no record of forward pass 9; collect.on_bad=drop reads what there is" in message(tmp_path)
        result, load = read(tmp_path, on_bad="drop")
        np.testing.assert_array_equal(load.logical_count, np.delete(COUNT, 2, axis=0))
        assert "Left out or incomplete: rank 1 has no record of forward pass 9" in result.note
        assert len(parts) == 3

    def test_a_rank_that_is_missing(self, tmp_path: Path) -> None:
        self.write(tmp_path)
        sorted(tmp_path.iterdir())[1].unlink()
        assert "rank 1 missing, though there is rank 2" in message(tmp_path)
        assert read(tmp_path, on_bad="drop")[1].windows == 6

    def test_records_that_are_there_twice_count_once(self, tmp_path: Path) -> None:
        self.write(tmp_path)
        file = min(tmp_path.iterdir())
        value = torch.load(file, weights_only=True)
        value["records"] += value["records"][1:3]
        torch.save(value, file)
        assert "rank 0 has forward passes 8, 9 more than once" in message(tmp_path)
        np.testing.assert_array_equal(read(tmp_path, on_bad="drop")[1].logical_count, COUNT)

    def test_gatherers_of_one_pass_are_added_up(self, tmp_path: Path) -> None:
        self.write(tmp_path, ranks=1)
        file = next(tmp_path.iterdir())
        value = torch.load(file, weights_only=True)
        value["records"] += [{**record, "gatherer_key": "child_a"} for record in value["records"]]
        torch.save(value, file)
        np.testing.assert_array_equal(read(file)[1].logical_count, COUNT * 2)

    def test_several_dumps_of_all_ranks(self, tmp_path: Path) -> None:
        self.write(tmp_path, time="100.5")
        self.write(
            tmp_path, time="200.5", count=COUNT + 1
        )  # the server was started anew: its passes count from 7 again
        load = read(tmp_path, window_by="files")[1]
        np.testing.assert_array_equal(load.logical_count, np.stack([COUNT.sum(axis=0), (COUNT + 1).sum(axis=0)]))
        max(tmp_path.iterdir()).unlink()
        assert "rank 2 has 1 file, but other ranks have 2" in message(tmp_path)

    def test_counts_of_tokens_alone(self, tmp_path: Path) -> None:
        self.write(tmp_path, per_token=True)
        for file in tmp_path.iterdir():
            value = torch.load(file, weights_only=True)
            for record in value["records"]:
                del record["global_physical_count"]
            torch.save(value, file)
        np.testing.assert_array_equal(read(tmp_path)[1].logical_count, COUNT)

    def test_mixed_ranks_modes_and_maps(self, tmp_path: Path) -> None:
        self.write(tmp_path)
        first, second, _ = sorted(tmp_path.iterdir())
        original = torch.load(second, weights_only=True)
        files.write_stat(second, COUNT)
        assert "mixes dumps of several modes" in message(tmp_path)
        torch.save({**original, "last_physical_to_logical_map": torch.from_numpy(MAP[:, ::-1].copy())}, second)
        assert f"{second.name} has another last_physical_to_logical_map than {first.name}" in message(tmp_path)
        original["records"][3]["rank"] = 0
        torch.save(original, second)
        assert "mixes ranks: record 3 is of rank 0, the first of 1" in message(tmp_path)
        del original["last_physical_to_logical_map"]
        original["records"][3]["rank"] = 1
        torch.save(original, second)
        assert "has no last_physical_to_logical_map" in message(tmp_path)

    def test_dense_layers(self, tmp_path: Path) -> None:
        dense = np.concatenate([np.zeros((6, 3, 6), dtype=int), files.physical(COUNT, MAP, RNG)], axis=1)
        whole = np.concatenate([np.tile(np.arange(6) % 4, (3, 1)), MAP])
        files.write_passes(tmp_path, [dense], whole)
        load = read(tmp_path, spec=model(3, 4, first_moe_layer=3))[1]
        np.testing.assert_array_equal(load.logical_count, COUNT)
        np.testing.assert_array_equal(load.current, MAP)
