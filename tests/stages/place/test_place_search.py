"""The stage with `local_search`, and with what every algorithm can be asked for: what it says and that it is so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.balance import balancedness_per_layer, gpu_load
from stages.errors import BadInput
from stages.expert_map import EMPTY, contiguous_map, moved_slots, replica_counts
from stages.place.config import PlaceOptions, PlaceStageConfig
from stages.topology import Link, Links, Topology
from tests.stages.place.test_place_config import BASE
from tests.stages.place.test_place_stage import COUNTS, METRICS, as_json, run

SEARCH = {
    "search_attempts", "clock_cut", "redundant_experts_total", "redundant_experts_knee", "expert_bytes_per_gpu",
    "balancedness_next_window",
}  # fmt: skip


def search(folder: Path, counts: Any = COUNTS, **options: Any) -> Any:
    return run(folder, counts, **{"algorithm": "local_search", "max_steps": 40, **options})


def balance(counts: np.ndarray, expert_map: np.ndarray, ranks: int) -> float:
    return float(balancedness_per_layer(gpu_load(counts.sum(axis=0).astype(float), expert_map, ranks)).mean())


def test_metrics_figures_and_note(tmp_path: Path) -> None:
    result, placement = search(tmp_path, topology=(2, 2), redundant_experts=4)
    metrics = result.metrics
    assert metrics.keys() == METRICS | SEARCH
    assert result.figures.keys() == {"gpu_load", "replicas", "movement", "redundancy"}
    assert metrics["balancedness"] == pytest.approx(balance(COUNTS, placement.physical_to_logical_map, 4))
    assert metrics["redundant_experts_total"] == 3 * 4
    assert metrics["expert_bytes_per_gpu"] == 3 * 4  # slots of one byte, 4 in each of 3 layers
    assert metrics["search_attempts"] <= 3 * 40
    assert metrics["clock_cut"] == 0
    assert metrics["duplicate_replicas"] == 0
    assert result.tags["place.ended_by"] == "search"
    assert "12 redundant experts in all layers" in result.note
    assert "the knee" in result.note
    assert "clock" not in result.note
    moved, curve = result.figures["movement"].axes[0].lines[0].get_xydata().T
    assert moved[0] == 0
    assert curve[0] == pytest.approx(metrics["balancedness_before"])
    assert curve[-1] >= metrics["balancedness"] - 1e-12
    labels = [text.get_text() for text in result.figures["redundancy"].axes[0].get_legend().get_texts()]
    assert labels[:2] == ["spent where they help most", "the same in every layer"]
    assert labels[2] == f"knee: {metrics['redundant_experts_knee']:,.0f}"
    for name, figure in result.figures.items():
        figure.savefig(tmp_path / f"{name}.png")


def test_is_better_than_eplb_on_the_same_slots(tmp_path: Path) -> None:
    ours, _ = search(tmp_path, topology=(2, 2), redundant_experts=4)
    eplb, _ = run(tmp_path, COUNTS, topology=(2, 2), redundant_experts=4)
    assert ours.metrics["balancedness"] > eplb.metrics["balancedness"]
    assert ours.metrics["optimality_gap"] < eplb.metrics["optimality_gap"]


def test_a_run_that_the_clock_cut_says_so(tmp_path: Path) -> None:
    result, _ = search(tmp_path, topology=(2, 2), redundant_experts=4, seconds=1e-9, max_steps=None)
    assert result.metrics["clock_cut"] == 1
    assert result.tags["place.ended_by"] == "clock"
    assert "cut by the clock (place.seconds=1e-09)" in result.note


def test_min_gain_keeps_what_is_good_and_says_so(tmp_path: Path) -> None:
    _, best = search(tmp_path, topology=(1, 4))
    now = as_json(tmp_path / "now.json", best.physical_to_logical_map.tolist())
    shifted = COUNTS.copy()
    shifted[:, 1] = shifted[:, 1, ::-1]  # one layer's load is another's now
    result, placement = search(tmp_path, shifted, topology=(1, 4), current=now, min_gain=0.01)
    kept = (placement.physical_to_logical_map == placement.current).all(axis=1)
    assert kept.tolist() == [True, False, True]
    assert result.metrics["layers_kept"] == 2
    assert result.tags["place.kept_current"] == "2 of 3 layers"
    assert "2 of 3 layers keep the current placement: they had less than 0.01 of balancedness to gain" in result.note
    for algorithm in ("eplb", "local_search"):
        result, placement = run(tmp_path, shifted, topology=(1, 4), current=now, min_gain=1.0, algorithm=algorithm)
        np.testing.assert_array_equal(placement.physical_to_logical_map, placement.current)
        assert result.metrics["layers_kept"] == 3
        assert result.metrics["moved_slots"] == 0


@pytest.mark.parametrize(("topology", "num_groups"), [((1, 4), 1), ((2, 2), 3), ((2, 2), 4)])
def test_eplb_relabelled_moves_less_at_the_same_balance(
    tmp_path: Path, topology: tuple[int, int], num_groups: int
) -> None:
    before, placement = run(tmp_path, COUNTS, topology=topology, num_groups=num_groups, redundant_experts=4)
    now = as_json(tmp_path / "now.json", np.roll(placement.physical_to_logical_map, 4, axis=1).tolist())
    options = {"topology": topology, "num_groups": num_groups, "redundant_experts": 4, "current": now}
    plain, _ = run(tmp_path, COUNTS, **options)
    less, relabelled = run(tmp_path, COUNTS, relabel=True, **options)
    assert less.metrics["balancedness"] == pytest.approx(before.metrics["balancedness"])
    assert less.metrics["moved_slots"] < plain.metrics["moved_slots"]
    if num_groups == 4:  # groups still keep to their nodes
        by_node = relabelled.physical_to_logical_map.reshape(3, 2, -1) // 3
        for layer in by_node:
            assert not set(layer[0].tolist()) & set(layer[1].tolist())


def test_a_total_is_spent_where_it_helps(tmp_path: Path) -> None:
    """One layer is even, one is skewed: the skewed one gets the slots, and the other has holes in its place."""
    even, skewed = [10] * 8, [100, 60, 1, 1, 1, 1, 1, 1]
    counts = np.array([[even, skewed]])
    total, placement = search(tmp_path, counts, topology=(1, 4), redundant_experts=8, redundancy="total")
    each, _ = search(tmp_path, counts, topology=(1, 4), redundant_experts=4)
    new = placement.physical_to_logical_map
    assert (new != EMPTY).sum(axis=1).tolist() == [8, 16]
    assert placement.slots == 16
    assert (placement.current != EMPTY).sum(axis=1).tolist() == [8, 16]
    assert replica_counts(new, 8)[0].tolist() == [1] * 8
    assert total.metrics["redundant_experts_total"] == each.metrics["redundant_experts_total"] == 8
    assert total.metrics["expert_bytes_per_gpu"] == each.metrics["expert_bytes_per_gpu"] == 2 + 4
    assert total.metrics["balancedness"] > each.metrics["balancedness"]


def test_layers_keep_the_slots_that_the_current_placement_fills(tmp_path: Path) -> None:
    counts = np.array([[[9, 5, 3, 1], [1, 3, 5, 9]]])
    now = as_json(tmp_path / "now.json", [[0, 1, 2, 3, 0, -1], [3, -1, 1, 2, -1, 0]])
    result, placement = search(tmp_path, counts, topology=(1, 2), current=now, redundancy="current")
    filled = (placement.physical_to_logical_map != EMPTY).reshape(2, 2, 3).sum(axis=2)
    assert filled.tolist() == [[3, 2], [2, 2]]
    assert result.metrics["redundant_experts_total"] == 1
    assert result.metrics["expert_bytes_per_gpu"] == 5
    assert result.metrics["balancedness"] > result.metrics["balancedness_before"]


def test_a_cap_in_bytes(tmp_path: Path) -> None:
    free, _ = search(tmp_path, topology=(2, 2), redundant_experts=4)
    result, placement = search(tmp_path, topology=(2, 2), redundant_experts=4, max_moved_bytes=7)
    assert moved_slots(placement.current, placement.physical_to_logical_map, 12, 4) <= 7  # of one byte each
    assert result.metrics["balancedness_before"] < result.metrics["balancedness"] < free.metrics["balancedness"]


def test_a_target_and_whether_it_was_reached(tmp_path: Path) -> None:
    reached, _ = search(tmp_path, topology=(1, 4), redundant_experts=4, target_balancedness=0.8)
    free, _ = search(tmp_path, topology=(1, 4), redundant_experts=4)
    assert reached.metrics["balancedness"] >= 0.8
    assert reached.metrics["moved_slots"] < free.metrics["moved_slots"]
    assert reached.metrics["target_reached"] == 1
    assert reached.tags["place.target_reached"] == "yes"
    assert "the target, a balancedness of 0.8, is reached" in reached.note
    missed, _ = search(tmp_path, topology=(1, 4), target_balancedness=1.0)
    assert missed.metrics["target_reached"] == 0
    assert missed.tags["place.target_reached"] == "no"
    assert "the target, a balancedness of 1, cannot be reached" in missed.note


def test_locality_and_what_it_costs(tmp_path: Path) -> None:
    result, placement = search(tmp_path, topology=(2, 2), num_groups=4, redundant_experts=4, locality="node_groups")
    free, _ = search(tmp_path, topology=(2, 2), num_groups=4, redundant_experts=4)
    by_node = placement.physical_to_logical_map.reshape(3, 2, -1) // 3
    for layer in by_node:
        assert not set(layer[0].tolist()) & set(layer[1].tolist())
    lost = free.metrics["balancedness"] - result.metrics["balancedness"]
    assert result.metrics["balancedness_lost_to_locality"] == pytest.approx(lost)
    assert f"keeping expert groups within nodes costs {lost:.4f} of balancedness" in result.note


@pytest.mark.parametrize("rule", ["last", "quantile", "ewma"])
@pytest.mark.parametrize("algorithm", ["eplb", "local_search"])
def test_the_load_rule_decides_what_is_placed_for(tmp_path: Path, rule: str, algorithm: str) -> None:
    """The last window is all one expert; metrics still judge under all windows."""
    counts = np.array([[[10, 10, 10, 10]], [[10, 10, 10, 10]], [[0, 90, 0, 0]]])
    result, placement = run(
        tmp_path, counts, topology=(1, 2), redundant_experts=2, load=rule, load_half_life=0.5, algorithm=algorithm
    )
    assert f"place.load={rule}" in result.note
    replicas = replica_counts(placement.physical_to_logical_map, 4)[0]
    assert replicas[1] == replicas.max() > 1
    assert result.metrics["balancedness"] == pytest.approx(balance(counts, placement.physical_to_logical_map, 2))


@pytest.mark.parametrize(("nodes", "gpus", "experts"), [(3, 5, 12), (1, 7, 12), (5, 1, 3), (2, 3, 12), (1, 1, 12)])
def test_gpu_counts_that_engines_refuse(tmp_path: Path, nodes: int, gpus: int, experts: int) -> None:
    counts = COUNTS[:, :, :experts]
    result, placement = search(tmp_path, counts, topology=(nodes, gpus))
    assert placement.slots % (nodes * gpus) == 0
    assert replica_counts(placement.physical_to_logical_map, experts).min() >= 1
    assert result.metrics["balancedness"] >= result.metrics["balancedness_before"]


def test_no_load_at_all(tmp_path: Path) -> None:
    result, _ = search(tmp_path, np.zeros((2, 3, 12), dtype=np.int64), topology=(1, 4), redundant_experts=4)
    assert result.metrics["balancedness"] == 1
    assert result.metrics["optimality_gap"] == 0
    assert result.metrics["moved_slots"] == 0


def test_huge_loads(tmp_path: Path) -> None:
    result, _ = search(tmp_path, COUNTS * 2**45, topology=(1, 4), redundant_experts=4)
    small, _ = search(tmp_path, COUNTS, topology=(1, 4), redundant_experts=4)
    assert result.metrics["balancedness"] == pytest.approx(small.metrics["balancedness"])


def test_a_current_placement_of_another_size(tmp_path: Path) -> None:
    now = as_json(tmp_path / "now.json", contiguous_map(3, 12, 16).tolist())
    with pytest.raises(BadInput, match=r"has 16 slots a layer and the new placement 1\d: set place.redundancy=current"):
        search(tmp_path, topology=(1, 4), redundant_experts=0, redundancy="total", current=now)


def changed(group: str, **values: Any) -> bool:
    """Whether the key of a search changes with a value."""
    options = values if group == "place" else {}
    config = PlaceStageConfig(PlaceOptions(**options), BASE.model, BASE.topology)
    if group == "topology":
        config.topology = Topology(**values)
    if group == "seed":
        config.seed = values["seed"]
    return config.key_config() != BASE.key_config()


@pytest.mark.parametrize(
    ("group", "values"),
    [
        ("place", {"load": "last"}),
        ("place", {"load": "ewma"}),
        ("place", {"redundancy": "total"}),
        ("place", {"target_balancedness": 0.9}),
        ("place", {"max_moved_bytes": 1}),
        ("place", {"max_moved_slots": 1}),
        ("place", {"min_gain": 0.1}),
        ("place", {"relabel": False}),
        ("place", {"locality": "node_groups"}),
        ("place", {"seconds": 1.0}),
        ("place", {"max_steps": 1}),
        ("topology", {"links": Links(Link(1.0, 1.0), Link(1.0, 1.0))}),
        ("seed", {"seed": 1}),
    ],
)
def test_the_key_of_a_search_changes(group: str, values: dict[str, Any]) -> None:
    assert changed(group, **values)


@pytest.mark.parametrize(
    ("group", "values"),
    [
        ("place", {"load_quantile": 0.5}),
        ("place", {"load_half_life": 9.0}),
        ("place", {"objective": "balance"}),
        ("place", {"relabel": True}),
        ("topology", {"links": Links(Link(700.0, 1.0), Link(100.0, 1.0))}),  # as many times faster within a node
    ],
)
def test_the_key_of_a_search_stays(group: str, values: dict[str, Any]) -> None:
    assert not changed(group, **values)


def test_the_key_takes_the_seed_and_links_only_where_they_count() -> None:
    for algorithm in ("eplb", "contiguous"):
        config = PlaceStageConfig(PlaceOptions(algorithm=algorithm), BASE.model, BASE.topology, seed=1)
        other = PlaceStageConfig(PlaceOptions(algorithm=algorithm), BASE.model, BASE.topology, seed=2)
        assert config.key_config() == other.key_config()
        assert "cross_node_factor" not in config.key_config()["topology"]
        relabelled = PlaceStageConfig(PlaceOptions(algorithm=algorithm, relabel=True), BASE.model, BASE.topology)
        assert relabelled.key_config()["topology"]["cross_node_factor"] == 7
