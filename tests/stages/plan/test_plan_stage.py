from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings

from stages import paths
from stages.contract import StageResult
from stages.direct import direct_transfers
from stages.errors import BadInput
from stages.expert_map import ExpertMap
from stages.model import ModelSpec, TensorSpec
from stages.placement import Placement, write_placement
from stages.plan.config import PlanOptions, PlanStageConfig
from stages.plan.stage import plan
from stages.plan.traffic import count_traffic
from stages.topology import Device, Link, Links, Topology
from stages.transfers import Kind, TransferPlan, read_transfers
from tests.stages.maps import MapPair, map_pairs

MODEL = ModelSpec(tensors=[TensorSpec("w13", [8, 4], "bfloat16"), TensorSpec("scale", [4], "float32")])
EXPERT_BYTES = 8 * 4 * 2 + 4 * 4

# Two nodes of two GPUs with two slots each. In layer 0 rank 1 receives 1 from rank 0 (its node) and 5 from rank 2, rank 2
# receives 2 and rank 3 receives 3 from rank 1, rank 3 copies 0; in layer 1 slots swap within GPUs and nothing else.
OLD = np.array([[0, 1, 2, 3, 4, 5, 0, 1], [0, 1, 2, 3, 4, 5, 0, 1]])
NEW = np.array([[0, 1, 5, 1, 4, 2, 3, 0], [1, 0, 3, 2, 4, 5, 0, 1]])


INSTANT = Device(1e9, 1e9)


def config(nodes: int = 2, gpus_per_node: int = 2, policy: str = "direct") -> PlanStageConfig:
    links = Links(Link(100.0, 10.0), Link(10.0, 30.0))
    return PlanStageConfig(PlanOptions(policy), MODEL, Topology("t", nodes, gpus_per_node, links=links, device=INSTANT))


def run(tmp_path: Path, old: ExpertMap, new: ExpertMap, experts: int, settings: PlanStageConfig) -> StageResult:
    write_placement(tmp_path / "place", Placement(new, old, experts))
    said: list[float] = []
    result = plan(
        settings,
        {"placement": tmp_path / "place" / paths.PLACEMENT},
        tmp_path,
        lambda _, part, *counts: said.append(part),
    )
    assert said == sorted(said)
    return result


def test_outputs_and_metrics(tmp_path: Path) -> None:
    result = run(tmp_path, OLD, NEW, 6, config())
    assert result.files == (paths.TRANSFERS, paths.TRANSFERS_PREVIEW, paths.TRAFFIC)
    assert all((tmp_path / name).is_file() for name in result.files)
    # Rank 1 sends two experts to node 1, each as two messages, while it receives one over either link.
    layer_0 = 2 * EXPERT_BYTES / 10e9 + 2 * 2 * 30e-6
    assert dict(result.metrics) | {"plan_seconds": 0} == {
        "transfers": 4,
        "moved_bytes": 4 * EXPERT_BYTES,
        "cross_node_bytes": 3 * EXPERT_BYTES,
        "same_node_bytes": EXPERT_BYTES,
        "relay_bytes": 0,
        "max_rank_recv_bytes": 2 * EXPERT_BYTES,
        "max_node_send_bytes": 2 * EXPERT_BYTES,
        "rank_weight_bytes": 2 * 2 * EXPERT_BYTES,
        "rounds": 2,
        "least_rounds": 2,
        "predicted_seconds": pytest.approx(layer_0),
        "lower_bound_seconds": pytest.approx(2 * EXPERT_BYTES / (2 * 10e9)),
        "plan_seconds": 0,
    }
    assert result.metrics["plan_seconds"] > 0
    stored, expected = read_transfers(tmp_path / paths.TRANSFERS), direct_transfers(OLD, NEW, 4, 2, EXPERT_BYTES)
    published = stored.select(np.lexsort((stored.dst_slot, stored.kind, stored.logical_expert, stored.layer)))
    columns = set(TransferPlan.__dataclass_fields__) - {"round"}
    assert all(np.array_equal(getattr(published, c), getattr(expected, c)) for c in columns)
    assert stored.kind.tolist().count(Kind.same_gpu) == 5
    assert stored.round[stored.network].tolist() == [0, 0, 1, 1]


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
        "policy": "direct",
        "least_cross_node_bytes": 3 * b,
        "experts_from_files": 0,
        "rounds_of_layer": [2, 0],
        "least_rounds_of_layer": [2, 0],
        "predicted": {
            "executor": "reference",
            "seconds": pytest.approx(2 * b / 10e9 + 2 * 2 * 30e-6),
            "seconds_of_parts": pytest.approx([2 * b / 10e9 + 2 * 2 * 30e-6, 0], abs=1e-12),
            "lower_bound_seconds": pytest.approx(2 * b / 20e9),
            "busiest_link": "GPU 1 out (network)",
            "busiest_link_seconds": pytest.approx(2 * b / 10e9),
        },
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
        "| from another node | 3 | |",
        "within nodes: 80 bytes; across nodes: 240 bytes, where no plan needs less than 240 bytes",
        "busiest rank: 1 receives 160 bytes",
        "busiest node: 160 bytes leave node 0",
        "busiest link: GPU 1 out (network)",
        "rounds: 2 over all layers, where no schedule has less than 2",
        "by the reference executor in 2 layers",
    ):
        assert words in result.note


def test_maps_that_agree_move_nothing(tmp_path: Path) -> None:
    result = run(tmp_path, OLD, OLD, 6, config())
    assert {name for name, value in result.metrics.items() if value} <= {
        "plan_seconds",
        "rank_weight_bytes",
        "predicted_seconds",
    }
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
    with pytest.raises(BadInput, match=r"plan.policy=teleport is not known; allowed are auto, direct, relay\."):
        PlanOptions("teleport")
    with pytest.raises(
        BadInput,
        match=r"plan.executor=magic \(which follows update.executor\) is not known; allowed are reference, pipelined\.",
    ):
        PlanOptions(executor="magic")
    with pytest.raises(BadInput, match=r"plan.group_ops=0 is not possible"):
        PlanOptions(group_ops=0)
    with pytest.raises(
        BadInput, match=r"plan.layers_per_step=0 \(which follows update.layers_per_step\) is not possible"
    ):
        PlanOptions(layers_per_step=0)


def test_auto_relays_where_there_is_more_than_one_node() -> None:
    assert config(2, 2, "auto").policy == "relay"
    assert config(1, 4, "auto").policy == "direct"
    assert config(2, 2, "direct").policy == "direct"
    assert config(2, 2, "auto").key_config() == config(2, 2, "relay").key_config()


def test_relay_as_a_stage(tmp_path: Path) -> None:
    """Both GPUs of node 1 want expert 1: it crosses once, and the second is served by the first."""
    old, new = np.array([[0, 1, 2, 3, 4, 5, 0, 4]]), np.array([[0, 1, 2, 3, 1, 5, 1, 4]])
    result = run(tmp_path, old, new, 6, config(policy="auto"))
    assert result.tags["policy"] == "relay"
    found = {name: result.metrics[name] // EXPERT_BYTES for name in ("cross_node_bytes", "relay_bytes", "moved_bytes")}
    assert found == {"cross_node_bytes": 1, "relay_bytes": 1, "moved_bytes": 2}
    assert (result.metrics["rounds"], result.metrics["least_rounds"]) == (2, 2)
    assert read_transfers(tmp_path / paths.TRANSFERS).kind.tolist() == [Kind.cross_node, Kind.relay]
    assert "| relayed by a GPU that just got it | 1 | 80 bytes |" in result.note
    direct = run(tmp_path / "direct", old, new, 6, config())
    assert direct.metrics["cross_node_bytes"] == 2 * EXPERT_BYTES
    assert json.loads((tmp_path / "direct" / paths.TRAFFIC).read_text())["least_cross_node_bytes"] == EXPERT_BYTES


def test_experts_that_no_rank_holds_come_from_files_alone(tmp_path: Path) -> None:
    old, new = np.array([[0, 1, 2, 2], [0, 1, 1, 2]]), np.array([[3, 1, 0, 2], [0, 1, 2, 3]])
    with pytest.raises(
        BadInput, match=r"layer 0: .* 3 is needed in slot 0 \(rank 0\), .*; nor does one hold layer 1: logical"
    ):
        run(tmp_path, old, new, 4, config(1, 4))
    files = replace(config(1, 4), plan=PlanOptions("direct", weights="safetensors"))
    result = run(tmp_path, old, new, 4, files)
    assert "2 experts that no GPU holds are read from files" in result.note
    found = read_transfers(tmp_path / paths.TRANSFERS)
    assert sorted(zip(found.layer.tolist(), found.logical_expert.tolist(), strict=True)) == [(0, 0), (1, 2)]


def test_key_holds_what_can_change_the_result() -> None:
    links = {
        "within_node": {"gb_per_s": 100.0, "latency_us": 10.0, "curve": []},
        "between_nodes": {"gb_per_s": 10.0, "latency_us": 30.0, "curve": []},
        "node_gb_per_s": None,
    }
    device: dict[str, float | None] = {"copy_gb_per_s": 1e9, "checksum_gb_per_s": 1e9, "layer_us": 0.0, "batch_us": 0.0}
    device |= {"layer_message_us": None, "batch_message_us": None, "layer_share": 1.0}
    assert config().key_config() == {
        "plan": {"policy": "direct", "group_ops": 64, "executor": "reference", "from_files": False},
        "model": {"tensors": [64, 16]},
        "topology": {"nodes": 2, "gpus_per_node": 2, "rails": False, "links": links, "device": device},
    }


def test_layers_that_wait_for_each_other_are_predicted_so(tmp_path: Path) -> None:
    old, new = np.tile([0, 1, 2, 3], (2, 1)), np.tile([2, 3, 0, 1], (2, 1))
    for layers_per_step, batches in ((None, 1), (1, 2)):
        options = PlanOptions("direct", executor="pipelined", layers_per_step=layers_per_step)
        settings = replace(config(1, 2), plan=options)
        run(tmp_path, old, new, 4, settings)
        told = json.loads((tmp_path / paths.TRAFFIC).read_text())["predicted"]
        assert len(told["seconds_of_parts"]) == batches
        key = settings.key_config()["plan"]
        assert isinstance(key, dict)
        assert key["layers_per_step"] == layers_per_step


def test_importing_the_stage_is_cheap() -> None:
    heavy = "{'torch', 'pandas', 'pyarrow', 'matplotlib', 'scipy', 'einops', 'numba'}"
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
