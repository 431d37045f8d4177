"""What the verify stage writes, returns and raises."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from stages import paths
from stages.contract import silent
from stages.errors import BadInput, Corruption
from stages.model import ModelSpec, TensorSpec
from stages.verdict import MISMATCH_COLUMNS, Mismatch, mismatch_rows, read_verdict, write_verdict
from stages.verify.config import VerifyOptions, VerifyStageConfig
from stages.verify.report import note
from stages.verify.source import recompute
from stages.verify.stage import verify
from tests.stages.verify.world import SPECS, W2, World, config, run

OLD = [[0, 1, 2, 3, 0, 1]]
NEW = [[1, 0, 2, 3, 3, 2]]


@pytest.fixture
def world() -> World:
    world = World(OLD, NEW, experts=4, ranks=3)
    world.update()
    return world


def test_a_passing_verdict_is_written_and_told(world: World, tmp_path: Path) -> None:
    said: list[tuple[str, float]] = []
    result = verify(config(), world.save(tmp_path), tmp_path, lambda what, done, *counts: said.append((what, done)))
    verdict = read_verdict(tmp_path / paths.VERDICT)
    assert verdict.passed
    assert set(result.files) == {paths.VERDICT, paths.MISMATCHES_PREVIEW}
    assert result.metrics["checksums_compared"] == verdict.compared == 3 * 12
    assert result.metrics["mismatches"] == 0
    assert result.metrics["verify_gb_per_s"] == verdict.nbytes / verdict.seconds / 1e9 > 0
    assert result.tags == {"verdict": "passed"}
    assert result.note.startswith("**Verdict: passed.** All 36 checksums are those of the experts")
    assert "generator with seed 7" in result.note
    fractions = [done for _, done in said]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0


def test_corruption_is_raised_with_all_that_is_known(world: World, tmp_path: Path) -> None:
    world.flip_bit(0, 5, W2, 1)
    world.put(0, 3, 2)
    with pytest.raises(Corruption) as caught:
        verify(config(), world.save(tmp_path), tmp_path, silent)
    assert caught.value.exit_code == 3
    message = str(caught.value)
    assert message.startswith("4 of 36 checksums are wrong; the first: layer 0 slot 3 (rank 1) tensor w13_weight: ")
    assert message.endswith(", the bytes of expert 2 of layer 0.")
    assert "\n" not in message
    result = caught.value.result
    assert result is not None
    assert result.metrics["mismatches"] == 4
    assert result.tags == {"verdict": "failed"}
    assert all((tmp_path / file).is_file() for file in result.files)
    verdict = read_verdict(tmp_path / paths.VERDICT)
    assert not verdict.passed
    header, *rows = csv.reader((tmp_path / paths.MISMATCHES_PREVIEW).read_text(encoding="utf-8").splitlines())
    assert tuple(header) == MISMATCH_COLUMNS
    assert rows == mismatch_rows(verdict)
    assert result.note.count("\n| 0 |") == 4


def test_one_mismatch_is_told_as_one(world: World, tmp_path: Path) -> None:
    world.flip_bit(0, 5, W2, 1)
    with pytest.raises(Corruption, match=r"^1 of 36 checksums is wrong: layer 0 slot 5 \(rank 2\) tensor w2_weight: "):
        verify(config(), world.save(tmp_path), tmp_path, silent)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("new", OLD, "after the update, layer 0 slot 0 holds expert 0, and the placement says 1 (still the old map)"),
        ("new", [[1, 0, 2, 3, 3, 0]], "after the update, layer 0 slot 5 holds expert 0, and the placement says 2 (1 "),
        ("old", [[0, 1, 2, 3, 0, 3]], "before the update, layer 0 slot 5 holds expert 3, and the placement says 1 (1 "),
    ],
)
def test_a_map_that_was_not_updated_is_named(
    world: World, tmp_path: Path, field: str, value: list[list[int]], message: str
) -> None:
    table = dataclasses.replace(world.table(), **{field: np.array(value)})
    with pytest.raises(Corruption) as caught:
        verify(config(), world.save(tmp_path, table=table), tmp_path, silent)
    assert message in str(caught.value)
    verdict = read_verdict(tmp_path / paths.VERDICT)
    assert not verdict.passed
    assert verdict.fault == str(caught.value)
    assert caught.value.result is not None
    assert caught.value.result.tags == {"verdict": "failed"}
    assert message in caught.value.result.note


def test_maps_of_another_shape_and_other_ranks_are_named(world: World, tmp_path: Path) -> None:
    other = World([[0, 1, 2, 3]], [[1, 0, 2, 3]], experts=4, ranks=3)
    other.update()
    inputs = {**world.save(tmp_path), "placement": other.save(tmp_path / "other")["placement"]}
    with pytest.raises(Corruption, match="1 layers of 6 slots and 1 layers of 4 slots"):
        verify(config(), inputs, tmp_path, silent)
    world.ranks = 2
    inputs = {**inputs, "checksums": world.save(tmp_path / "two")["checksums"]}
    with pytest.raises(Corruption, match="checksums are of 2 ranks, the execution is of 3"):
        verify(config(), inputs, tmp_path, silent)


def test_tensors_of_another_model_are_refused(world: World, tmp_path: Path) -> None:
    other = VerifyStageConfig(VerifyOptions(), ModelSpec(tensors=[TensorSpec("w", [4], "uint8")]), 0)
    with pytest.raises(BadInput, match=r"tensors w13_weight, w13_scale, w2_weight; model\.tensors are w\.$"):
        verify(other, world.save(tmp_path), tmp_path, silent)


def test_weights_that_cannot_be_made_anew_are_compared_with_their_holders(world: World, tmp_path: Path) -> None:
    verdict, result = run(world.save(tmp_path, weights="safetensors"), tmp_path, seed=99)
    assert verdict.passed
    assert "the update has update.weights=safetensors, and verify.weights=synthetic." in result.note
    options = VerifyOptions(weights="safetensors")
    result = verify(
        VerifyStageConfig(options, ModelSpec(tensors=SPECS), 0),
        world.save(tmp_path, weights="safetensors"),
        tmp_path,
        silent,
    )
    assert "verify.weights_path does not say where its files are." in result.note


def test_the_key_holds_what_can_change_the_verdict() -> None:
    assert config().key_config()["seed"] == 7
    assert "seed" not in config(source=False).key_config()
    assert config(seed=1).key_config() != config(seed=2).key_config()
    assert config(source=False, seed=1).key_config() == config(source=False, seed=2).key_config()
    assert [t["name"] for t in config().key_config()["model"]["tensors"]] == [spec.name for spec in SPECS]
    scaled = VerifyStageConfig(VerifyOptions(), ModelSpec(tensors=SPECS, scale=0.5), 7)
    assert scaled.key_config() != config().key_config()
    renamed = VerifyStageConfig(VerifyOptions(), ModelSpec(name="other", tensors=SPECS), 7)
    assert renamed.key_config() == config().key_config()


def test_a_note_shows_the_first_fifty(tmp_path: Path, world: World) -> None:
    verdict, _ = run(world.save(tmp_path), tmp_path)
    mismatch = Mismatch(0, 1, 0, 0, "w", "a", "b", "source")
    text = note(dataclasses.replace(verdict, passed=False, mismatches=[mismatch] * 60))
    assert text.count("| 0 | 1 |") == 50
    assert "The first 50 of 60" in text


def test_recomputing_uses_threads_and_leaves_their_number() -> None:
    layers, experts = (index.ravel() for index in np.indices((3, 5)))
    before = torch.get_num_threads()
    done: list[float] = []
    torch.set_num_threads(2)
    try:
        found = recompute(SPECS, 3, layers, experts, lambda what, fraction, *counts: done.append(fraction))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    one_by_one = [recompute(SPECS, 3, layers[n : n + 1], experts[n : n + 1], silent) for n in range(15)]
    np.testing.assert_array_equal(found, np.concatenate(one_by_one))
    assert len(np.unique(found)) == found.size
    assert done == sorted(done)
    assert done[-1] == 1.0


def test_commas_and_quotes_survive_the_table(tmp_path: Path, world: World) -> None:
    verdict, _ = run(world.save(tmp_path), tmp_path)
    mismatch = Mismatch(0, 1, 0, 0, 'w, "x"', "a", "b", "source", "expert 3, of layer 2")
    write_verdict(tmp_path, dataclasses.replace(verdict, mismatches=[mismatch]))
    rows = list(csv.reader((tmp_path / paths.MISMATCHES_PREVIEW).read_text(encoding="utf-8").splitlines()))
    assert rows[1][4] == 'w, "x"'
    assert rows[1][9] == "expert 3, of layer 2"
