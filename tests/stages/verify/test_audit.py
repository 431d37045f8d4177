"""Every kind of corruption is named exactly, with the source of the weights and without it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stages.synthetic import truth
from stages.verdict import Mismatch, Verdict
from tests.stages.verify.world import SCALE, SEED, SPECS, W2, W13, World, run

# Two layers of eight slots on four ranks. In layer 1, slot 6 is empty before and slot 0 after the update; expert 0
# has two old holders (slots 0, 7), expert 3 moves to slots 2 and 6, expert 5 stays.
OLD = [[0, 1, 2, 3, 4, 5, 0, 1], [0, 1, 2, 3, 4, 5, -1, 0]]
NEW = [[0, 2, 1, 3, 4, 5, 0, 5], [-1, 0, 3, 2, 4, 5, 3, 1]]


@pytest.fixture
def world() -> World:
    return World(OLD, NEW, experts=6, ranks=4)


def expected(layer: int, expert: int, tensor: int) -> str:
    return f"{truth(SPECS, SEED, np.array([layer]), np.array([expert]))[0, tensor]:016x}"


def short(mismatch: Mismatch) -> tuple[int, int, int, int, str, str, str, str]:
    m = mismatch
    return m.layer, m.slot, m.rank, m.logical_expert, m.tensor, m.against, m.whose, m.when


def judge(world: World, folder: Path, source: bool) -> Verdict:
    verdict, _ = run(world.save(folder), folder, source=source)
    for mismatch in verdict.mismatches:
        names = [spec.name for spec in SPECS]
        right = expected(mismatch.layer, mismatch.logical_expert, names.index(mismatch.tensor))
        assert mismatch.expected == right
        assert mismatch.found != right
    return verdict


@pytest.mark.parametrize("source", [True, False])
def test_a_good_update_passes(world: World, tmp_path: Path, source: bool) -> None:
    world.update()
    verdict = judge(world, tmp_path, source)
    assert verdict.passed
    assert verdict.mismatches == []
    # 8 + 7 filled slots in each map; without the source, an old slot counts only where its expert has a replica.
    assert verdict.compared == 3 * ((8 + 7) + (8 + 7) if source else (2 + 2 + 2) + (8 + 7))
    assert verdict.nbytes == 15 * sum(spec.nbytes for spec in SPECS)


@pytest.mark.parametrize("source", [True, False])
@pytest.mark.parametrize(
    ("layer", "slot", "tensor", "bit", "rank", "expert"),
    [(0, 1, W13, 0, 0, 2), (0, 4, W2, 8 * 4400 - 1, 2, 4), (1, 7, SCALE, 50, 3, 1), (1, 6, W2, 777, 3, 3)],
)
def test_one_flipped_bit_is_one_mismatch(
    world: World, tmp_path: Path, source: bool, layer: int, slot: int, tensor: int, bit: int, rank: int, expert: int
) -> None:
    world.update()
    world.flip_bit(layer, slot, tensor, bit)
    verdict = judge(world, tmp_path, source)
    assert not verdict.passed
    row = (layer, slot, rank, expert, SPECS[tensor].name, "old holders", "", "after")
    assert [short(m) for m in verdict.mismatches] == [row]


@pytest.mark.parametrize("source", [True, False])
def test_swapped_experts_are_named(world: World, tmp_path: Path, source: bool) -> None:
    world.update()
    world.put(0, 2, 3)
    world.put(0, 3, 1)
    verdict = judge(world, tmp_path, source)
    assert [short(m) for m in verdict.mismatches] == [
        (0, slot, 1, expert, spec.name, "old holders", f"expert {other} of layer 0", "after")
        for slot, expert, other in ((2, 1, 3), (3, 3, 1))
        for spec in SPECS
    ]


@pytest.mark.parametrize("source", [True, False])
def test_a_dropped_commit_is_named(world: World, tmp_path: Path, source: bool) -> None:
    world.update(but=(1, 2))
    verdict = judge(world, tmp_path, source)
    assert [short(m) for m in verdict.mismatches] == [
        (1, 2, 1, 3, spec.name, "old holders", "the slot's old expert 2 (not committed)", "after") for spec in SPECS
    ]


@pytest.mark.parametrize("source", [True, False])
def test_a_scale_that_moved_without_its_weight_is_named(world: World, tmp_path: Path, source: bool) -> None:
    world.update()
    world.put(0, 7, 1, (W13, W2))  # slot 7 held expert 1 and gets 5: the scale came, the weights did not
    world.put(1, 3, 5, (SCALE,))  # and here a scale of another expert came alone
    verdict = judge(world, tmp_path, source)
    stale = "the slot's old expert 1 (not committed)"
    assert [short(m) for m in verdict.mismatches] == [
        (0, 7, 3, 5, "w13_weight", "old holders", stale, "after"),
        (0, 7, 3, 5, "w2_weight", "old holders", stale, "after"),
        (1, 3, 1, 2, "w13_scale", "old holders", "expert 5 of layer 1", "after"),
    ]


@pytest.mark.parametrize("source", [True, False])
def test_an_expert_of_another_layer_is_named(world: World, tmp_path: Path, source: bool) -> None:
    world.update()
    for k in (W13, SCALE, W2):
        world.memory[k][1, 5] = world.memory[k][0, 5]
    verdict = judge(world, tmp_path, source)
    assert {m.whose for m in verdict.mismatches} == {"expert 5 of layer 0"}
    assert [m.slot for m in verdict.mismatches] == [5, 5, 5]


def test_replicas_that_disagree_before_are_settled_by_the_source(world: World, tmp_path: Path) -> None:
    world.flip_bit(0, 7, W2, 5)  # the second holder of expert 1; slot 7 then gets expert 5
    world.update()
    verdict = judge(world, tmp_path, source=True)
    assert [short(m) for m in verdict.mismatches] == [(0, 7, 3, 1, "w2_weight", "replicas", "", "before")]


def test_a_bad_copy_that_was_sent_on_is_named_at_both_ends(world: World, tmp_path: Path) -> None:
    world.flip_bit(0, 1, W2, 5)  # the first holder of expert 1, which is sent to slot 2; slot 1 then gets expert 2
    world.update()
    verdict = judge(world, tmp_path, source=True)
    assert [short(m) for m in verdict.mismatches] == [
        (0, 1, 0, 1, "w2_weight", "replicas", "", "before"),
        (0, 2, 1, 1, "w2_weight", "old holders", "expert 1 of layer 0 as slot 1 held it before", "after"),
    ]


def test_replicas_of_equal_weight_are_settled_by_the_first_without_the_source(world: World, tmp_path: Path) -> None:
    world.flip_bit(1, 7, SCALE, 1)  # expert 0 of layer 1 is in slots 0 and 7, and slot 0 comes first
    world.update()
    verdict = judge(world, tmp_path, source=False)
    assert [short(m) for m in verdict.mismatches] == [(1, 7, 3, 0, "w13_scale", "replicas", "", "before")]


def test_the_majority_of_old_holders_decides_without_the_source(tmp_path: Path) -> None:
    world = World([[0, 0, 0, 1]], [[1, 0, 0, 0]], experts=2, ranks=2)
    world.flip_bit(0, 0, W13, 3)  # the odd one comes first, and is the one that is sent
    world.update()
    verdict = judge(world, tmp_path, source=False)
    bad = "expert 0 of layer 0 as slot 0 held it before"
    assert [short(m) for m in verdict.mismatches] == [
        (0, 0, 0, 0, "w13_weight", "replicas", "", "before"),
        (0, 3, 1, 0, "w13_weight", "old holders", bad, "after"),
    ]


def test_what_was_wrong_before_and_stays_is_one_mismatch(world: World, tmp_path: Path) -> None:
    world.flip_bit(0, 6, W2, 9)  # expert 0 of layer 0 stays in slots 0 and 6
    world.update()
    verdict = judge(world, tmp_path, source=True)
    bad = "expert 0 of layer 0 as slot 6 held it before"
    assert [short(m) for m in verdict.mismatches] == [(0, 6, 3, 0, "w2_weight", "old holders", bad, "after")]


def test_an_expert_that_all_held_wrong_is_a_mismatch_with_the_source_alone(world: World, tmp_path: Path) -> None:
    world.put(0, 4, 2, (SCALE,))  # the only holder of expert 4, which stays
    world.flip_bit(0, 2, W13, 0)  # the only holder of expert 2, which moves to slot 1
    world.update()
    assert run(world.save(tmp_path), tmp_path, source=False)[0].passed
    verdict = judge(world, tmp_path, source=True)
    assert [short(m) for m in verdict.mismatches] == [
        (0, 1, 0, 2, "w13_weight", "source", "expert 2 of layer 0 as slot 2 held it before", "after"),
        (0, 2, 1, 2, "w13_weight", "source", "", "before"),
        (0, 4, 2, 4, "w13_scale", "source", "expert 2 of layer 0", "after"),
    ]


def test_experts_that_no_slot_held_are_compared_with_their_replicas(tmp_path: Path) -> None:
    world = World([[0, 1, -1, -1, -1, 1]], [[0, 1, 2, 2, 2, 3]], experts=4, ranks=2)
    world.update()
    for slot, expert in ((2, 2), (3, 2), (4, 2), (5, 3)):
        world.put(0, slot, expert)  # these came from files
    verdict = judge(world, tmp_path, source=False)
    assert verdict.passed
    assert verdict.compared == 3 * (2 + 5)  # expert 3 in slot 5 is alone, as was expert 0 before
    world.put(0, 3, 1, (W2,))
    verdict = judge(world, tmp_path, source=False)
    assert [short(m) for m in verdict.mismatches] == [
        (0, 3, 1, 2, "w2_weight", "replicas", "expert 1 of layer 0", "after")
    ]


def test_emptied_slots_are_not_checked(world: World, tmp_path: Path) -> None:
    world.update()
    world.flip_bit(1, 0, W2, 3)
    assert judge(world, tmp_path, source=True).passed


def test_other_seed_means_other_weights(world: World, tmp_path: Path) -> None:
    world.update()
    verdict, _ = run(world.save(tmp_path), tmp_path, seed=SEED + 1)
    # All are wrong, and each slot that keeps its expert is told once: 15 after the update, and those that moved before.
    kept = int(((world.old == world.new) & (world.old != -1)).sum())
    assert len(verdict.mismatches) == 3 * (15 + 15 - kept)
    assert {m.against for m in verdict.mismatches} == {"source"}
