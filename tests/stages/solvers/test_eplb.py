"""EPLB against the published results, against the published loops, and against what every placement must satisfy."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from stages.balance import gpu_load
from stages.errors import BadInput
from stages.expert_map import replica_counts
from stages.solvers.eplb import Rebalanced, balanced_packing, rebalance_experts, replicate_experts
from tests.stages.solvers import reference_eplb

GOLDEN = Path(__file__).parents[2] / "golden"
KNOWN = json.loads((GOLDEN / "placement_known_answers.json").read_text())

with np.load(GOLDEN / "eplb.npz") as file:
    CASES = {name: file[name] for name in file.files}
NAMES = sorted(name.removesuffix(".weight") for name in CASES if name.endswith(".weight"))


def sizes_of(name: str) -> tuple[int, int, int, int]:
    """P, groups, nodes and GPUs from the name of a golden case."""
    found = re.fullmatch(r"\d+\.replicas(\d+)_groups(\d+)_nodes(\d+)_gpus(\d+)", name)
    assert found is not None
    slots, groups, nodes, gpus = map(int, found.groups())
    return slots, groups, nodes, gpus


def test_there_are_14_golden_cases() -> None:
    assert len(NAMES) == 14


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("output", Rebalanced._fields)
def test_golden(name: str, output: str) -> None:
    found = getattr(rebalance_experts(CASES[f"{name}.weight"], *sizes_of(name)), output)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found, CASES[f"{name}.{output}"])


def test_readme_example() -> None:
    case = KNOWN["eplb_readme"]
    found = rebalance_experts(np.array(case["weight"]), **case["args"])
    assert found.physical_to_logical_map.tolist() == case["phy2log"]


def test_flashlb_toy() -> None:
    case = KNOWN["flashlb_toy"]
    load, gpus = np.array([case["load"]]), case["gpus"]
    new_map = rebalance_experts(load, gpus * case["slots_per_gpu"], 1, 1, gpus).physical_to_logical_map
    assert gpu_load(load.astype(np.float64), new_map, gpus).max() == case["eplb_max"] == 232


@st.composite
def problems(draw: st.DrawFn) -> tuple[np.ndarray, int, int, int, int]:
    """Loads with ties and zeros, and sizes that EPLB takes, hierarchical and global."""
    nodes, node_gpus = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    groups = draw(st.sampled_from([1, nodes, 2 * nodes, 3]))
    experts = groups * draw(st.integers(1, 6))
    gpus = nodes * node_gpus
    slots = -(-(experts + draw(st.integers(0, 2 * experts))) // gpus) * gpus
    largest = draw(st.sampled_from([0, 1, 3, 1_000, 10**12]))
    shape = (draw(st.integers(1, 3)), experts)
    weight = draw(hnp.arrays(np.int64, shape, elements=st.integers(0, largest), fill=st.nothing()))
    return weight, slots, groups, nodes, gpus


@given(problems())
@settings(deadline=None, max_examples=150, derandomize=True)
def test_equals_the_published_loops(problem: tuple[np.ndarray, int, int, int, int]) -> None:
    weight, *sizes = problem
    new_map, slots_of, counts = reference_eplb.rebalance_experts(torch.from_numpy(weight), *sizes)
    found = rebalance_experts(weight, *sizes)
    np.testing.assert_array_equal(found.physical_to_logical_map, new_map.numpy())
    np.testing.assert_array_equal(found.logical_to_physical_map, slots_of.numpy())
    np.testing.assert_array_equal(found.logical_count, counts.numpy())


def test_groups_that_differ_by_rounding_alone() -> None:
    """Each group has the same loads in another order: float32 sums in torch's order of addition tell them apart."""
    rng = np.random.default_rng(0)
    loads = rng.lognormal(8.0, 2.0, (20, 1, 48)).repeat(8, axis=1)
    weight = rng.permuted(loads, axis=2).reshape(20, 8 * 48).astype(np.float32)
    sizes = (8 * 48, 8, 4, 8)
    new_map = reference_eplb.rebalance_experts(torch.from_numpy(weight), *sizes)[0]
    np.testing.assert_array_equal(rebalance_experts(weight, *sizes).physical_to_logical_map, new_map.numpy())


@given(problems())
@settings(deadline=None, max_examples=100, derandomize=True)
def test_outputs_agree_and_groups_keep_to_their_node(problem: tuple[np.ndarray, int, int, int, int]) -> None:
    weight, slots, groups, nodes, gpus = problem
    layers, experts = weight.shape
    found = rebalance_experts(weight, slots, groups, nodes, gpus)
    np.testing.assert_array_equal(found.logical_count, replica_counts(found.physical_to_logical_map, experts))
    assert found.logical_count.min() >= 1
    for layer in range(layers):
        for expert in range(experts):
            listed = found.logical_to_physical_map[layer, expert]
            assert (
                sorted(listed[listed >= 0]) == np.flatnonzero(found.physical_to_logical_map[layer] == expert).tolist()
            )
    if groups % nodes == 0:
        by_node = found.physical_to_logical_map.reshape(layers, nodes, -1) // (experts // groups)
        for layer in range(layers):
            homes = [set(row.tolist()) for row in by_node[layer]]
            assert sum(map(len, homes)) == groups == len(set.union(*homes))


def test_equal_weights_come_in_the_order_of_torchs_sort() -> None:
    weight = np.ones((1, 64), dtype=np.float32)
    order = torch.ones(1, 64).sort(-1, descending=True).indices[0]
    pack, position = balanced_packing(weight, 4)
    assert pack[0, order.numpy()].tolist() == [item % 4 for item in range(64)]
    assert position[0, order.numpy()].tolist() == [item // 4 for item in range(64)]


def test_one_item_a_pack_stays_where_it_is() -> None:
    pack, position = balanced_packing(np.array([[1.0, 5.0, 3.0]], dtype=np.float32), 3)
    assert pack.tolist() == [[0, 1, 2]]
    assert position.tolist() == [[0, 0, 0]]


def test_a_full_pack_takes_no_more() -> None:
    pack, position = balanced_packing(np.array([[9.0, 1.0, 1.0, 1.0]], dtype=np.float32), 2)
    assert sorted(pack[0].tolist()) == [0, 0, 1, 1]
    assert pack[0, 0] == 0
    assert position[0, 0] == 0


def test_replicas_go_to_the_largest_replica_load() -> None:
    expert_of, replica_of, counts = replicate_experts(np.array([[10.0, 6.0, 1.0]], dtype=np.float32), 6)
    assert expert_of.tolist() == [[0, 1, 2, 0, 1, 0]]  # 10, then 6, then 5 of 5, 3, 1
    assert replica_of.tolist() == [[0, 0, 0, 1, 1, 2]]
    assert counts.tolist() == [[3, 2, 1]]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((8, 3, 1, 2), "eplb: 4 experts do not divide evenly over model.num_groups=3."),
        ((8, 2, 2, 3), "eplb: 3 GPUs do not divide evenly over 2 nodes."),
        ((9, 1, 1, 2), "eplb: 9 slots do not divide evenly over 2 GPUs."),
        ((2, 1, 1, 2), "eplb: 2 slots cannot hold 4 experts."),
    ],
)
def test_sizes_that_cannot_be(sizes: tuple[int, int, int, int], message: str) -> None:
    with pytest.raises(BadInput) as error:
        rebalance_experts(np.ones((1, 4)), *sizes)
    assert str(error.value) == message
