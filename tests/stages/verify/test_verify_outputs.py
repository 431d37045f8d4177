"""The judgement of the functional proof: what passes, what fails and is named, and what is no proof."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from stages import paths
from stages.contract import StageResult, silent
from stages.errors import BadInput, Corruption
from stages.functional import Difference, FunctionalProof, read_functional, write_functional
from stages.model import ModelSpec
from stages.verdict import read_verdict
from stages.verify.config import VerifyOptions, VerifyStageConfig
from stages.verify.stage import verify
from tests.stages.verify.world import SEED, SPECS, W2, World

PROOF = FunctionalProof("some arithmetic", 24, 0, ["a", "b"], ["a", "b"])
DIFFERENCE = Difference(layer=1, expert=3, token=5, slot_before=3, slot_after=4)
CONFIG = VerifyStageConfig(VerifyOptions(functional=True), ModelSpec(tensors=SPECS), SEED)


@pytest.fixture
def world() -> World:
    world = World([[0, 1, 2, 3, 0, 1]] * 2, [[1, 0, 2, 3, 3, 2]] * 2, experts=4, ranks=3)
    world.update()
    return world


def failed(world: World, folder: Path, proof: FunctionalProof) -> tuple[str, StageResult]:
    with pytest.raises(Corruption) as caught:
        verify(CONFIG, world.save(folder, proof=proof), folder, silent)
    assert caught.value.result is not None
    assert caught.value.exit_code == 3
    assert not read_verdict(folder / paths.VERDICT).passed
    return str(caught.value), caught.value.result


def test_the_same_outputs_pass(world: World, tmp_path: Path) -> None:
    result = verify(CONFIG, world.save(tmp_path, proof=PROOF), tmp_path, silent)
    assert (result.metrics["outputs_compared"], result.metrics["outputs_different"]) == (24, 0)
    verdict = read_verdict(tmp_path / paths.VERDICT)
    assert verdict.passed
    assert verdict.outputs == 24
    assert verdict.checks[-1] == (
        "Sent random tokens through the experts of each layer, before the update and after it (some arithmetic): 24 "
        "outputs of an expert for a token, bitwise the same."
    )
    assert verdict.checks[-1] in result.note


def test_other_outputs_fail_though_all_checksums_are_right(world: World, tmp_path: Path) -> None:
    proof = replace(PROOF, after=["a", "c"], different=2, differences=[DIFFERENCE, replace(DIFFERENCE, token=6)])
    message, result = failed(world, tmp_path, proof)
    assert message == (
        "The experts of 1 of 2 layers make something else of the same tokens than before the update; the first: layer 1 "
        "expert 3 token 5, which slot 3 served before the update and slot 4 after it."
    )
    assert message in result.note
    assert (result.metrics["mismatches"], result.metrics["outputs_different"]) == (0, 2)
    assert "which differ in 1 of 2 layers." in result.note


@pytest.mark.parametrize("differences", [[], [DIFFERENCE]])
def test_the_digests_decide_whatever_else_is_said(world: World, tmp_path: Path, differences: list[Difference]) -> None:
    message, result = failed(world, tmp_path, replace(PROOF, before=["x", "b"], differences=differences))
    assert message.endswith("the first: layer 0.")
    assert result.metrics["outputs_different"] == 1
    told = replace(PROOF, different=3, differences=[DIFFERENCE])
    assert verify(CONFIG, world.save(tmp_path, proof=told), tmp_path, silent).metrics["outputs_different"] == 0


def test_a_proof_of_other_layers_fails(world: World, tmp_path: Path) -> None:
    message, _ = failed(world, tmp_path, replace(PROOF, before=["a"]))
    assert message == ("The functional proof is of 1 layers before the update and 2 after it, and the model has 2.")


def test_wrong_checksums_come_first(world: World, tmp_path: Path) -> None:
    world.flip_bit(0, 5, W2, 1)
    message, _ = failed(world, tmp_path, replace(PROOF, after=["c", "b"], differences=[replace(DIFFERENCE, layer=0)]))
    assert message.startswith("1 of 72 checksums is wrong: layer 0 slot 5 ")
    assert read_verdict(tmp_path / paths.VERDICT).functional_fault.endswith("slot 4 after it.")


def test_what_is_asked_for_must_have_been_computed(world: World, tmp_path: Path) -> None:
    inputs = world.save(tmp_path)
    with pytest.raises(
        BadInput, match=r"^verify\.functional=true needs the outputs that an update computes with update\."
    ):
        verify(CONFIG, inputs, tmp_path, silent)
    without = {name: path for name, path in inputs.items() if name != "functional"}
    with pytest.raises(BadInput, match="this one has none"):
        verify(CONFIG, without, tmp_path, silent)
    not_asked = replace(CONFIG, verify=VerifyOptions())
    assert "outputs_compared" not in verify(not_asked, without, tmp_path, silent).metrics
    assert not_asked.key_config() != CONFIG.key_config()


def test_a_proof_survives_as_a_file(tmp_path: Path) -> None:
    proof = replace(PROOF, different=1, differences=[DIFFERENCE])
    assert write_functional(tmp_path, proof) == ("functional.json",)
    assert read_functional(tmp_path / "functional.json") == proof
