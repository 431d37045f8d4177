"""The stage: its artifacts, its metrics recomputed slot by slot, and every message it can stop with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages import paths
from stages.contract import StageResult, silent
from stages.errors import BadInput
from stages.expert_map import contiguous_map
from stages.load import LoadStats, write_load
from stages.model import ModelSpec, TensorSpec
from stages.place.config import PlaceOptions, PlaceStageConfig
from stages.place.stage import place
from stages.placement import Placement, read_placement
from stages.solvers.eplb import rebalance_experts
from stages.topology import Topology

METRICS = {
    "balancedness", "balancedness_worst_layer", "balancedness_before", "optimality_gap", "moved_slots",
    "duplicate_replicas", "redundant_experts_used", "solve_seconds",
}  # fmt: skip
COUNTS = np.random.default_rng(5).zipf(1.3, (5, 3, 12)).clip(max=5_000)
"""[T=5, L=3, E=12]: skewed, and different in each window."""


def run(
    folder: Path,
    counts: Any,
    *,
    topology: tuple[int, int] = (1, 2),
    num_groups: int = 1,
    first_moe_layer: int = 0,
    came_with: Any = None,
    **options: Any,
) -> tuple[StageResult, Placement]:
    """Run the stage on `counts` [T, L, E], by EPLB if `options` do not say; `came_with`: the map that came with the loads."""
    map_of_loads = None if came_with is None else np.array(came_with, dtype=np.int64)
    write_load(folder, LoadStats(np.array(counts, dtype=np.int64), current=map_of_loads))
    config = PlaceStageConfig(
        PlaceOptions(**{"algorithm": "eplb", **options}),
        ModelSpec(num_groups=num_groups, first_moe_layer=first_moe_layer, tensors=[TensorSpec("w", [1], "uint8")]),
        Topology(nodes=topology[0], gpus_per_node=topology[1]),
    )
    out = folder / "place"
    out.mkdir(exist_ok=True)
    result = place(config, {"load": folder / paths.LOAD}, out, silent)
    return result, read_placement(out / paths.PLACEMENT)


def as_json(path: Path, rows: Sequence[Sequence[int]]) -> str:
    path.write_text(json.dumps({"physical_to_logical_map": rows}))
    return str(path)


def gpu_loads(row: Sequence[int], slots: Sequence[int], ranks: int) -> list[Fraction]:
    """GPU loads of one layer, exactly and slot by slot."""
    each = len(slots) // ranks
    out = [Fraction(0)] * ranks
    for slot, expert in enumerate(slots):
        if expert >= 0:
            out[slot // each] += Fraction(int(row[expert]), list(slots).count(expert))
    return out


def balancedness(counts: np.ndarray, expert_map: np.ndarray, ranks: int) -> list[float]:
    """[L], slot by slot."""
    out = []
    for row, slots in zip(counts.tolist(), expert_map.tolist(), strict=True):
        loads = gpu_loads(row, slots, ranks)
        out.append(float(sum(loads) / ranks / max(loads)) if max(loads) else 1.0)
    return out


def test_metrics_by_hand(tmp_path: Path) -> None:
    """Two layers of three experts in four slots on two GPUs; the second layer got no tokens."""
    counts = [[[6, 3, 0], [0, 0, 0]], [[3, 1, 3], [0, 0, 0]]]
    new = as_json(tmp_path / "new.json", [[0, 1, 0, 2], [0, 1, 2, 2]])
    now = as_json(tmp_path / "now.json", [[0, 0, 1, 2], [0, 1, 2, 0]])
    result, placement = run(tmp_path, counts, algorithm="file", path=new, current=now)
    assert placement.physical_to_logical_map.tolist() == [[0, 1, 0, 2], [0, 1, 2, 2]]
    assert placement.current.tolist() == [[0, 0, 1, 2], [0, 1, 2, 0]]
    assert placement.experts == 3
    expected = {
        "balancedness": 33 / 34,  # layer 0: GPU loads 8.5 and 7.5, mean 8; layer 1 counts as perfect
        "balancedness_worst_layer": 16 / 17,
        "balancedness_before": 17 / 18,  # layer 0: 9 and 7
        "balancedness_next_window": 8 / 9,  # layer 0: 2.5 and 4.5, mean 3.5
        "optimality_gap": 0.0,  # 8.5 is the best: expert 0 needs two replicas to beat 9, and then 4.5 meets 4
        "moved_slots": 2,  # layer 0: expert 1 to GPU 0, expert 0 to GPU 1
        "duplicate_replicas": 1,  # layer 1: expert 2 twice on GPU 1
        "redundant_experts_used": 1,
    }
    assert result.metrics.keys() == expected.keys() | {"solve_seconds"}
    for name, value in expected.items():
        assert result.metrics[name] == pytest.approx(value, abs=1e-12), name


@pytest.mark.parametrize(
    ("algorithm", "topology", "num_groups", "redundant", "slots", "policy"),
    [
        ("contiguous", (1, 4), 1, 0, 12, None),
        ("contiguous", (2, 4), 1, 2, 16, None),
        ("contiguous", (4, 8), 1, 0, 32, None),  # more ranks than experts: the rest are replicas
        ("eplb", (1, 4), 1, 0, 12, "hierarchical"),
        ("eplb", (2, 2), 1, 3, 16, "global"),
        ("eplb", (2, 2), 4, 3, 16, "hierarchical"),
        ("eplb", (3, 2), 4, 0, 12, "global"),
        ("eplb", (4, 8), 4, 0, 32, "hierarchical"),
    ],
)
def test_metrics_slot_by_slot(
    tmp_path: Path,
    algorithm: str,
    topology: tuple[int, int],
    num_groups: int,
    redundant: int,
    slots: int,
    policy: str | None,
) -> None:
    ranks = topology[0] * topology[1]
    result, placement = run(
        tmp_path, COUNTS, topology=topology, num_groups=num_groups, algorithm=algorithm, redundant_experts=redundant
    )
    new, current, metrics = placement.physical_to_logical_map, placement.current, result.metrics
    contiguous = contiguous_map(3, 12, slots)
    np.testing.assert_array_equal(current, contiguous)

    def solve(counts: np.ndarray) -> np.ndarray:
        if algorithm == "contiguous":
            return contiguous
        return rebalance_experts(counts, slots, num_groups, topology[0], ranks).physical_to_logical_map

    np.testing.assert_array_equal(new, solve(COUNTS.sum(axis=0)))
    per_layer = balancedness(COUNTS.sum(axis=0), new, ranks)
    assert metrics["balancedness"] == pytest.approx(np.mean(per_layer))
    assert metrics["balancedness_worst_layer"] == pytest.approx(min(per_layer))
    assert metrics["balancedness_before"] == pytest.approx(np.mean(balancedness(COUNTS.sum(axis=0), contiguous, ranks)))
    seen, unseen = COUNTS[:2].sum(axis=0), COUNTS[2:].sum(axis=0)
    assert metrics["balancedness_next_window"] == pytest.approx(np.mean(balancedness(unseen, solve(seen), ranks)))
    moved = duplicates = 0
    for old_row, new_row in zip(
        current.reshape(3, ranks, -1).tolist(), new.reshape(3, ranks, -1).tolist(), strict=True
    ):
        for held, needed in zip(old_row, new_row, strict=True):
            moved += len(set(needed) - set(held))
            duplicates += len(needed) - len(set(needed))
    assert metrics["moved_slots"] == moved
    assert metrics["duplicate_replicas"] == duplicates
    assert metrics["redundant_experts_used"] == slots - 12
    assert metrics["optimality_gap"] >= 0
    assert metrics["solve_seconds"] > 0
    assert result.tags.get("place.policy") == policy
    assert result.tags["place.algorithm"] == algorithm


def test_optimality_gap_keeps_below_the_true_optimum(tmp_path: Path) -> None:
    known = json.loads((Path(__file__).parents[2] / "golden" / "placement_known_answers.json").read_text())
    case = known["flashlb_toy"]
    result, _ = run(tmp_path, [[case["load"]]], topology=(1, case["gpus"]), redundant_experts=8)
    gap = result.metrics["optimality_gap"]
    bound = case["eplb_max"] / (1 + gap)
    assert case["mean"] - 1e-9 <= bound <= case["exact_optimum"] + 1e-6


def test_eplb_takes_whole_counts_as_they_are(tmp_path: Path) -> None:
    """2^60 + 2^36 + 1 rounds up to a float32 at once, but down by way of a float64, which loses the 1."""
    large = 2**60 + 2**36
    counts = [[[large, large + 1, large, 0]]]
    _, placement = run(tmp_path, counts)
    expected = rebalance_experts(np.array(counts[0]), 4, 1, 1, 2).physical_to_logical_map
    np.testing.assert_array_equal(placement.physical_to_logical_map, expected)
    through_floats = rebalance_experts(np.array(counts[0], dtype=np.float64), 4, 1, 1, 2).physical_to_logical_map
    assert expected.tolist() != through_floats.tolist()


def test_one_window_has_no_next(tmp_path: Path) -> None:
    result, _ = run(tmp_path, COUNTS[:1], topology=(1, 4))
    assert result.metrics.keys() == METRICS


def test_two_windows_have_a_next(tmp_path: Path) -> None:
    result, _ = run(tmp_path, COUNTS[:2], topology=(1, 4))
    assert result.metrics.keys() == METRICS | {"balancedness_next_window"}


def test_same_input_same_bytes(tmp_path: Path) -> None:
    digests = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        result, _ = run(tmp_path / name, COUNTS, topology=(2, 2), redundant_experts=4)
        assert result.files == (paths.PLACEMENT, paths.PLACEMENT_JSON, paths.MOVES, paths.GPU_BALANCE)
        digests.append([paths.sha256(tmp_path / name / "place" / file) for file in result.files])
    assert digests[0] == digests[1]


def test_file_round_trip(tmp_path: Path) -> None:
    """What the stage wrote is what `place=file` reads, in both of its formats, and its P wins."""
    (tmp_path / "first").mkdir()
    first, placement = run(tmp_path / "first", COUNTS, topology=(2, 2), redundant_experts=4)
    for name in (paths.PLACEMENT, paths.PLACEMENT_JSON):
        assert name in first.files
        path = str(tmp_path / "first" / "place" / name)
        result, again = run(tmp_path, COUNTS, topology=(2, 2), algorithm="file", path=path, redundant_experts=40)
        np.testing.assert_array_equal(again.physical_to_logical_map, placement.physical_to_logical_map)
        np.testing.assert_array_equal(again.current, contiguous_map(3, 12, 16))
        for metric in METRICS - {"solve_seconds"}:
            assert result.metrics[metric] == first.metrics[metric]


def test_file_may_leave_slots_empty(tmp_path: Path) -> None:
    path = as_json(tmp_path / "new.json", [[0, -1, 1, -1]])
    result, placement = run(tmp_path, [[[3, 1]]], algorithm="file", path=path)
    assert placement.physical_to_logical_map.tolist() == [[0, -1, 1, -1]]
    assert result.metrics["balancedness"] == pytest.approx(2 / 3)
    assert result.metrics["duplicate_replicas"] == 0
    assert result.metrics["redundant_experts_used"] == 2


def test_current_from_the_loads(tmp_path: Path) -> None:
    came_with = np.tile(np.arange(12)[::-1], (3, 1))
    for current, expected in (("loads", came_with), ("contiguous", contiguous_map(3, 12, 12))):
        result, placement = run(tmp_path, COUNTS, algorithm="contiguous", came_with=came_with, current=current)
        np.testing.assert_array_equal(placement.current, expected)
        assert result.metrics["moved_slots"] == (36 if current == "loads" else 0)
        assert result.tags["place.current"] == current


def test_files_of_engines_have_rows_of_dense_layers_too(tmp_path: Path) -> None:
    """As SGLang's: two dense layers come first."""
    whole = np.stack([np.roll(np.arange(12), layer) for layer in range(5)])
    path = as_json(tmp_path / "engine.json", whole.tolist())
    given: dict[str, dict[str, Any]] = {
        "current": {"algorithm": "contiguous", "current": path},
        "map": {"algorithm": "file", "path": path},
    }
    for which, options in given.items():
        _, placement = run(tmp_path, COUNTS, first_moe_layer=2, **options)
        found = placement.current if which == "current" else placement.physical_to_logical_map
        np.testing.assert_array_equal(found, whole[2:])
        with pytest.raises(BadInput, match="has 5 layers, but the loads have 3"):
            run(tmp_path, COUNTS, first_moe_layer=1, **options)


def test_figures_and_note(tmp_path: Path) -> None:
    result, placement = run(tmp_path, COUNTS, topology=(2, 2), num_groups=4, redundant_experts=4)
    assert result.figures.keys() == {"gpu_load", "replicas"}
    before, after = (axes.images[0].get_array() for axes in result.figures["gpu_load"].axes[:2])
    assert before.shape == after.shape == (3, 4)
    np.testing.assert_allclose(after.mean(axis=1), 1.0)
    np.testing.assert_allclose(
        after[0].max(), 1 / balancedness(COUNTS.sum(axis=0), placement.physical_to_logical_map, 4)[0]
    )
    replicas = result.figures["replicas"].axes[0].images[0].get_array()
    assert replicas.shape == (3, 12)
    assert replicas.sum() == 3 * 16
    for name, figure in result.figures.items():
        figure.savefig(tmp_path / f"{name}.png")

    per_layer = balancedness(COUNTS.sum(axis=0), placement.physical_to_logical_map, 4)
    worst = int(np.argmin(per_layer))
    metrics = result.metrics
    assert f"{metrics['balancedness_before']:.4f} → {metrics['balancedness']:.4f}" in result.note
    assert f"Worst: MoE layer {worst} at {per_layer[worst]:.4f}" in result.note
    assert "`eplb` (hierarchical) put 12 experts a layer into 16 slots" in result.note
    assert f"{metrics['moved_slots']:.0f} moved slots" in result.note
    for engine in ("SGLang", "vLLM:", "TensorRT-LLM", "vLLM-Ascend"):
        assert engine in result.note


def test_progress_rises_to_one(tmp_path: Path) -> None:
    write_load(tmp_path, LoadStats(COUNTS))
    config = PlaceStageConfig(
        PlaceOptions(algorithm="contiguous"), ModelSpec(tensors=[TensorSpec("w", [1], "uint8")]), Topology(nodes=1)
    )
    seen: list[float] = []
    place(config, {"load": tmp_path / paths.LOAD}, tmp_path, lambda message, fraction, *_: seen.append(fraction))
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


ROWS = [[0, 1, 2, 3]]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([*ROWS, *ROWS], "place.path={path} has 2 layers, but the loads have 1."),
        (
            [[0, 1, 2, 3, 0]],
            "place.path={path} has 5 slots a layer, which do not divide evenly over the 2 ranks of the topology.",
        ),
        (
            [[0, 1, 2, 4]],
            "place.path={path}: layer 0 slot 3 holds expert 4; allowed are 0 to 3, and -1 for an empty slot.",
        ),
        ([[0, 1, 2, 2]], "place.path={path}: layer 0 holds expert 3 in no slot."),
        (
            [[0.5, 1, 2, 3]],
            (
                "place.path={path} holds a float64 array of shape [1, 4]; "
                "whole numbers of shape [layers, slots] were expected."
            ),
        ),
    ],
)
def test_placement_files_that_do_not_fit(tmp_path: Path, rows: Any, message: str) -> None:
    path = as_json(tmp_path / "new.json", rows)
    with pytest.raises(BadInput) as error:
        run(tmp_path, [[[1, 2, 3, 4]]], algorithm="file", path=path)
    assert str(error.value) == message.format(path=path)


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([*ROWS, *ROWS], {}, "has 2 layers, but the loads have 1."),
        ([[0, 1, 2, 3, 0]], {}, "has 5 slots a layer, which do not divide evenly over the 2 ranks of the topology."),
        ([[0, 1, 2, -1]], {}, ": layer 0 holds expert 3 in no slot."),
        (
            [[0, 1, 2, 3, 0, 1]],
            {},
            "has 6 slots a layer and the new placement 4: set place.redundant_experts=2.",
        ),
        (
            ROWS,
            {"algorithm": "contiguous", "redundant_experts": 3},
            "has 4 slots a layer and the new placement 8: set place.redundant_experts=0.",
        ),
        (
            [[0, 1, 2, 3, 0, 1]],
            {"algorithm": "file"},
            "has 6 slots a layer and the new placement 4: choose a file in place.path with 6.",
        ),
    ],
)
@pytest.mark.parametrize("source", ["loads", "file"])
def test_current_maps_that_do_not_fit(
    tmp_path: Path, rows: Any, options: dict[str, Any], message: str, source: str
) -> None:
    if options.get("algorithm") == "file":
        options = {**options, "path": as_json(tmp_path / "new.json", ROWS)}
    if source == "loads":
        came_with, current = rows, "loads"
    else:
        came_with, current = None, as_json(tmp_path / "now.json", rows)
    with pytest.raises(BadInput) as error:
        run(tmp_path, [[[1, 2, 3, 4]]], came_with=came_with, current=current, **options)
    separator = "" if message.startswith(":") else " "
    assert str(error.value) == f"place.current={current}{separator}{message}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"current": "loads"},
            "place.current=loads, but no placement came with the loads; allowed are contiguous and a placement file.",
        ),
        ({"current": "absent.json"}, "place.current=absent.json does not exist."),
        ({"algorithm": "file", "path": "absent.json"}, "place.path=absent.json does not exist."),
        ({"num_groups": 3}, "model.num_groups=3 does not divide the 4 experts of the loads evenly."),
    ],
)
def test_choices_that_cannot_be(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput) as error:
        run(tmp_path, [[[1, 2, 3, 4]]], **options)
    assert str(error.value) == message
