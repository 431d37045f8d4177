from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages import paths
from stages.contract import StageResult
from stages.direct import direct_transfers
from stages.errors import BadInput
from stages.expert_map import ExpertMap
from stages.model import ModelSpec, TensorSpec
from stages.placement import Placement, write_placement
from stages.plan.config import PlanOptions, PlanStageConfig
from stages.plan.cost import lower_bound_seconds, predicted_seconds_of_layers
from stages.plan.stage import plan
from stages.plan.traffic import count_traffic
from stages.topology import Link, Links, Topology
from stages.transfers import Kind, TransferPlan, read_transfers
from tests.stages.maps import MapPair, map_pairs

MODEL = ModelSpec(tensors=[TensorSpec("w13", [8, 4], "bfloat16"), TensorSpec("scale", [4], "float32")])
EXPERT_BYTES = 8 * 4 * 2 + 4 * 4

# Two nodes of two GPUs with two slots each. In layer 0 rank 1 receives 1 from rank 0 (its node) and 5 from rank 2, rank 2
# receives 2 and rank 3 receives 3 from rank 1, rank 3 copies 0; in layer 1 slots swap within GPUs and nothing else.
OLD = np.array([[0, 1, 2, 3, 4, 5, 0, 1], [0, 1, 2, 3, 4, 5, 0, 1]])
NEW = np.array([[0, 1, 5, 1, 4, 2, 3, 0], [1, 0, 3, 2, 4, 5, 0, 1]])


def config(nodes: int = 2, gpus_per_node: int = 2) -> PlanStageConfig:
    links = Links(Link(100.0, 10.0), Link(10.0, 30.0))
    return PlanStageConfig(PlanOptions(), MODEL, Topology("t", nodes, gpus_per_node, links=links))


def run(tmp_path: Path, old: ExpertMap, new: ExpertMap, experts: int, settings: PlanStageConfig) -> StageResult:
    write_placement(tmp_path / "place", Placement(new, old, experts))
    said: list[float] = []
    result = plan(
        settings, {"placement": tmp_path / "place" / paths.PLACEMENT}, tmp_path, lambda _, part: said.append(part)
    )
    assert said == sorted(said)
    return result


def test_outputs_and_metrics(tmp_path: Path) -> None:
    result = run(tmp_path, OLD, NEW, 6, config())
    assert result.files == (paths.TRANSFERS, paths.TRANSFERS_PREVIEW, paths.TRAFFIC)
    assert all((tmp_path / name).is_file() for name in result.files)
    layer_0 = 2 * EXPERT_BYTES / 10e9 + 2 * 2 * 30e-6
    assert dict(result.metrics) | {"plan_seconds": 0} == {
        "transfers": 4,
        "moved_bytes": 4 * EXPERT_BYTES,
        "cross_node_bytes": 3 * EXPERT_BYTES,
        "same_node_bytes": EXPERT_BYTES,
        "relay_bytes": 0,
        "max_rank_recv_bytes": 2 * EXPERT_BYTES,
        "max_node_send_bytes": 2 * EXPERT_BYTES,
        "predicted_seconds": pytest.approx(layer_0),
        "lower_bound_seconds": pytest.approx(2 * EXPERT_BYTES / (2 * 10e9)),
        "plan_seconds": 0,
    }
    assert result.metrics["plan_seconds"] > 0
    stored, expected = read_transfers(tmp_path / paths.TRANSFERS), direct_transfers(OLD, NEW, 4, 2, EXPERT_BYTES)
    assert all(np.array_equal(getattr(stored, c), getattr(expected, c)) for c in TransferPlan.__dataclass_fields__)
    assert stored.kind.tolist().count(Kind.same_gpu) == 5


def test_traffic_json(tmp_path: Path) -> None:
    run(tmp_path, OLD, NEW, 6, config())
    found = json.loads((tmp_path / paths.TRAFFIC).read_text())
    b = EXPERT_BYTES
    assert found == {
        "nodes": 2,
        "gpus_per_node": 2,
        "rows": {"same_gpu": 5, "free_rider": 0, "same_node": 1, "cross_node": 3, "relay": 0},
        "moved_bytes": 4 * b,
        "same_node_bytes": b,
        "cross_node_bytes": 3 * b,
        "relay_bytes": 0,
        "send": {
            "bytes_of_gpu": [b, 2 * b, b, 0],
            "within_node_bytes_of_gpu": [b, 0, 0, 0],
            "cross_node_bytes_of_gpu": [0, 2 * b, b, 0],
            "bytes_of_node": [3 * b, b],
            "within_node_bytes_of_node": [b, 0],
            "cross_node_bytes_of_node": [2 * b, b],
        },
        "recv": {
            "bytes_of_gpu": [0, 2 * b, b, b],
            "within_node_bytes_of_gpu": [0, b, 0, 0],
            "cross_node_bytes_of_gpu": [0, b, b, b],
            "bytes_of_node": [2 * b, 2 * b],
            "within_node_bytes_of_node": [b, 0],
            "cross_node_bytes_of_node": [b, 2 * b],
        },
        "same_node_bytes_of_layer": [b, 0],
        "cross_node_bytes_of_layer": [3 * b, 0],
        "bytes_from_node_to_node": [[b, 2 * b], [b, 0]],
        "bytes_from_rank_to_rank": [[0, b, 0, 0], [0, 0, b, b], [0, b, 0, 0], [0, 0, 0, 0]],
    }


def test_figures_note_and_tags(tmp_path: Path) -> None:
    result = run(tmp_path, OLD, NEW, 6, config())
    assert sorted(result.figures) == ["layers", "traffic"]
    image = result.figures["traffic"].axes[0].images[0].get_array()
    assert image is not None
    assert image.shape == (4, 4)
    assert image.sum() == pytest.approx(4 * EXPERT_BYTES / 1e6)
    across = result.figures["layers"].axes[0].lines[1].get_ydata()
    assert list(across) == pytest.approx([3 * EXPERT_BYTES / 1e6, 0])
    assert result.tags == {"policy": "direct", "topology": "t"}
    for words in (
        "**4 transfers move 320 bytes** on 2 x 2 GPUs",
        "| from another node | 3 | 240 bytes |",
        "busiest rank: 1 receives 160 bytes",
        "busiest node: 160 bytes leave node 0",
    ):
        assert words in result.note


def test_maps_that_agree_move_nothing(tmp_path: Path) -> None:
    result = run(tmp_path, OLD, OLD, 6, config())
    assert {name: value for name, value in result.metrics.items() if value and name != "plan_seconds"} == {}
    assert "Nothing crosses between GPUs" in result.note
    assert len(read_transfers(tmp_path / paths.TRANSFERS)) == 0


def test_one_node_sends_nothing_out(tmp_path: Path) -> None:
    result = run(tmp_path, OLD, NEW, 6, config(nodes=1, gpus_per_node=4))
    assert result.metrics["max_node_send_bytes"] == result.metrics["cross_node_bytes"] == 0
    assert result.metrics["lower_bound_seconds"] == pytest.approx(2 * EXPERT_BYTES / 100e9)
    assert "no byte leaves a node" in result.note


def test_the_matrix_of_many_ranks_is_left_out_and_said(tmp_path: Path) -> None:
    old = np.arange(264)[None, :]
    result = run(tmp_path, old, np.roll(old, 1, axis=1), 264, config(nodes=33, gpus_per_node=8))
    found = json.loads((tmp_path / paths.TRAFFIC).read_text())
    assert "bytes_from_rank_to_rank" not in found
    assert found["bytes_from_rank_to_rank_omitted"] == "264 ranks; the matrix is kept up to 256"
    assert found["recv"]["bytes_of_gpu"] == [EXPERT_BYTES] * 264
    axes = result.figures["traffic"].axes[0]
    assert axes.get_title() == "Bytes from node to node"
    image = axes.images[0].get_array()
    assert image is not None
    assert image.shape == (33, 33)


@pytest.mark.parametrize(
    ("old", "new", "topology", "message"),
    [
        ([[0, 1, 2, 3]], [[0, 1, 2, 2]], (2, 2), "The new map of the placement: layer 0 holds expert 3 in no slot"),
        ([[0, 1, 2, 9]], [[0, 1, 2, 3]], (2, 2), "The current map of the placement: layer 0 slot 3 holds expert 9"),
        ([[0, 1, 2, 2]], [[0, 1, 2, 3]], (2, 2), r"layer 0: logical expert 3 is needed in slot 3 \(rank 3\)"),
        ([[0, 1, 2, 3]], [[0, 1, 2, 3]], (1, 3), "4 slots do not divide evenly over 3 ranks"),
        ([[0, 1, 2, 3]], [[0, 1, 2, 3, 0, 1, 2, 3]], (2, 2), r"shape \[1, 4\], the new one \[1, 8\]"),
    ],
)
def test_placements_that_cannot_be(
    tmp_path: Path, old: list[list[int]], new: list[list[int]], topology: tuple[int, int], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        run(tmp_path, np.array(old), np.array(new), 4, config(*topology))


def test_a_policy_that_is_not_known() -> None:
    with pytest.raises(BadInput, match=r"plan.policy=teleport is not known; allowed are direct\."):
        PlanOptions("teleport")


def test_key_holds_what_can_change_the_result() -> None:
    links = {
        "within_node": {"gb_per_s": 100.0, "latency_us": 10.0},
        "between_nodes": {"gb_per_s": 10.0, "latency_us": 30.0},
    }
    assert config().key_config() == {
        "plan": {"policy": "direct"},
        "model": {"expert_bytes": EXPERT_BYTES, "tensors": 2},
        "topology": {"nodes": 2, "gpus_per_node": 2, "links": links},
    }


def test_importing_the_stage_is_cheap() -> None:
    heavy = "{'torch', 'pandas', 'pyarrow', 'matplotlib', 'scipy', 'einops'}"
    code = f"import sys, stages.plan.stage, stages.plan.config; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


def plan_of(pair: MapPair) -> tuple[TransferPlan, Topology]:
    topology = config(pair.ranks // pair.gpus_per_node, pair.gpus_per_node).topology
    return direct_transfers(pair.old, pair.new, pair.ranks, pair.gpus_per_node, EXPERT_BYTES), topology


@given(map_pairs())
@settings(deadline=None, max_examples=60, derandomize=True)
def test_bytes_counted_equal_bytes_sent(pair: MapPair) -> None:
    transfers, topology = plan_of(pair)
    traffic = count_traffic(transfers, topology, len(pair.old))
    sent = {"same": 0, "cross": 0}
    matrix = np.zeros((pair.ranks, pair.ranks), dtype=np.int64)
    for kind, src, dst, nbytes in zip(
        transfers.kind, transfers.src_rank, transfers.dst_rank, transfers.bytes, strict=True
    ):
        if kind >= Kind.same_node:
            sent["same" if kind == Kind.same_node else "cross"] += int(nbytes)
            matrix[src, dst] += nbytes
    assert np.array_equal(traffic.matrix, matrix)
    assert (traffic.same_node_bytes, traffic.cross_node_bytes) == (sent["same"], sent["cross"])
    assert traffic.moved_bytes == sent["same"] + sent["cross"] == int(traffic.recv.bytes_of_gpu.sum())
    assert np.array_equal(traffic.send.bytes_of_gpu, matrix.sum(axis=1))
    assert np.array_equal(traffic.recv.bytes_of_gpu, matrix.sum(axis=0))
    assert traffic.send.cross_node_bytes_of_gpu.sum() == traffic.recv.cross_node_bytes_of_gpu.sum() == sent["cross"]


@given(map_pairs(), st.sampled_from([0.0, 5.0]), st.sampled_from([1.0, 50.0, 400.0]))
@settings(deadline=None, max_examples=60, derandomize=True)
def test_prediction_by_loops_and_never_below_the_bound(pair: MapPair, latency_us: float, between: float) -> None:
    transfers, topology = plan_of(pair)
    topology.links = Links(Link(100.0, latency_us), Link(between, 2 * latency_us))
    found = predicted_seconds_of_layers(transfers, topology, len(pair.old), 3)
    expected = np.zeros((len(pair.old), 2, pair.ranks))
    for i in np.flatnonzero(transfers.network):
        link = topology.links.within_node if transfers.kind[i] == Kind.same_node else topology.links.between_nodes
        for direction, rank in enumerate((transfers.src_rank[i], transfers.dst_rank[i])):
            expected[transfers.layer[i], direction, rank] += link.seconds(EXPERT_BYTES, 3)
    assert found == pytest.approx(expected.max(axis=(1, 2)))
    bound = lower_bound_seconds(transfers, topology)
    assert bound <= found.sum() * (1 + 1e-9)
    assert (bound > 0) == bool(transfers.network.any())


def test_an_expert_that_two_ranks_of_a_node_lack_must_cross_only_once() -> None:
    """A relay could bring the second copy over the fast link, so that the bound counts one crossing."""
    topology = Topology("t", 2, 2, links=Links(Link(100.0, 0.0), Link(1.0, 0.0)))
    transfers = direct_transfers(np.array([[0, 1, 2, 3]]), np.array([[0, 1, 0, 0]]), 4, 2, 10**9)
    assert transfers.kind.tolist() == [Kind.cross_node, Kind.cross_node]
    assert lower_bound_seconds(transfers, topology) == pytest.approx(0.5)
    assert predicted_seconds_of_layers(transfers, topology, 1, 1).tolist() == pytest.approx([2.0])
