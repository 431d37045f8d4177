from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from stages.direct import direct_transfers
from stages.errors import BadInput
from stages.expert_map import EMPTY
from stages.update import (
    ExpertLocationMetadata,
    ExpertLocationUpdater,
    create_temp_buffers,
    get_global_expert_location_metadata,
    set_global_expert_location_metadata,
    update_expert_weights_single_layer,
)
from stages.update.single_layer import LayerMoves, metrics_line, moves_of_rank
from tests.stages.direct_reference import GoldenCase, golden_cases
from tests.stages.update.engine_ranks import (
    assert_slots_hold,
    expected_copies,
    expected_metrics,
    expected_strings,
    weights_of,
)

GOLDEN = pytest.mark.parametrize(
    "case", golden_cases(), ids=lambda c: f"{c.nodes}x{c.gpus_per_node}x{c.slots_per_rank}"
)


@pytest.fixture(autouse=True)
def _no_metadata() -> Iterator[None]:
    set_global_expert_location_metadata(None)
    yield
    set_global_expert_location_metadata(None)


def moves(old: list[int], new: list[int], ranks: int, gpus_per_node: int, rank: int) -> LayerMoves:
    plan = direct_transfers(np.array([old]), np.array([new]), ranks, gpus_per_node, 0)
    return moves_of_rank(plan, old, new, rank, len(old) // ranks)


@GOLDEN
def test_golden_decisions_string_for_string(case: GoldenCase) -> None:
    for rank in range(case.world_size):
        found = moves(case.old, case.new, case.world_size, case.gpus_per_node, rank)
        assert found.debug_lines() == expected_strings(case, rank)
        assert found.copies == expected_copies(case, rank)


@GOLDEN
def test_golden_ops_and_metrics(case: GoldenCase) -> None:
    for rank in range(case.world_size):
        found = moves(case.old, case.new, case.world_size, case.gpus_per_node, rank)
        assert [[op.direction, op.peer, op.slot] for _, ops in found.ops for op in ops] == case.ranks[rank]["ops"]
        experts = [expert for expert, _ in found.ops]
        assert experts == sorted(set(experts))
        line = metrics_line(found, 10, case.world_size, case.gpus_per_node, rank)
        assert line == expected_metrics(case, rank, 10)


def test_strings_are_those_of_the_design() -> None:
    # Two nodes of two GPUs with three slots; expert 9 is on rank 1 alone, 5 on rank 2 alone.
    old = [0, 1, 2, 9, 9, 3, 5, 4, 6, 7, 8, 0]
    new = [0, 9, 9, 9, 3, 5, 5, 4, 9, 9, 8, 1]
    assert moves(old, new, 4, 2, 0).debug_lines() == [
        "handle_recv_of_dst_expert_location dst_expert_location=0 case=unchanged",
        "handle_recv_of_dst_expert_location dst_expert_location=1 case=same-node chosen_src_rank=1",
        "handle_recv_of_dst_expert_location dst_expert_location=2 case=free-rider src_expert_location=1",
        (
            "create_isend_ops_of_logical_expert_id logical_expert_id=0 src_expert_location=0 "
            "same_node_dst_ranks=[] cross_node_dst_ranks=[]"
        ),
        (
            "create_isend_ops_of_logical_expert_id logical_expert_id=1 src_expert_location=1 "
            "same_node_dst_ranks=[] cross_node_dst_ranks=[3]"
        ),
        (
            "create_isend_ops_of_logical_expert_id logical_expert_id=2 src_expert_location=2 "
            "same_node_dst_ranks=[] cross_node_dst_ranks=[]"
        ),
    ]
    assert moves(old, new, 4, 2, 1).debug_lines() == [
        "handle_recv_of_dst_expert_location dst_expert_location=3 case=unchanged",
        "handle_recv_of_dst_expert_location dst_expert_location=4 case=same-gpu src_expert_location=5",
        "handle_recv_of_dst_expert_location dst_expert_location=5 case=cross-node chosen_src_rank=2",
        (
            "create_isend_ops_of_logical_expert_id logical_expert_id=9 src_expert_location=3 "
            "same_node_dst_ranks=[0] cross_node_dst_ranks=[2, 3]"
        ),
        (
            "create_isend_ops_of_logical_expert_id logical_expert_id=3 src_expert_location=5 "
            "same_node_dst_ranks=[] cross_node_dst_ranks=[]"
        ),
    ]


def test_emptied_slots_are_no_decision_and_empty_ones_no_source() -> None:
    found = moves([EMPTY, 1, 0, EMPTY], [1, EMPTY, EMPTY, 0], 2, 2, 0)
    assert found.debug_lines() == [
        "handle_recv_of_dst_expert_location dst_expert_location=0 case=same-gpu src_expert_location=1",
        (
            "create_isend_ops_of_logical_expert_id logical_expert_id=1 src_expert_location=1 "
            "same_node_dst_ranks=[] cross_node_dst_ranks=[]"
        ),
    ]
    assert (found.asides, found.copies) == ([(1, 0)], [(0, 0)])


def test_metrics_of_a_world_that_does_not_fill_its_last_node() -> None:
    found = moves([0, 1, 2], [1, 2, 0], 3, 2, 0)
    assert metrics_line(found, 4, 3, 2, 0) == (
        "[ExpertLocationUpdater] "
        "isend_nbytes_of_gpu=[0, 0, 4] isend_nbytes_of_node=[0, 4] isend_nbytes_curr_node=0 isend_nbytes_cross_node=4 "
        "irecv_nbytes_of_gpu=[0, 4, 0] irecv_nbytes_of_node=[4, 0] irecv_nbytes_curr_node=4 irecv_nbytes_cross_node=0 "
    )


OLD, NEW = [3, 1, 0, 0, 2], [0, 3, 3, 0, 2]
"""One rank: a swap through the buffers, a copy of a copy's source, and two slots that stay."""


def test_a_single_rank_moves_without_a_process_group(caplog: pytest.LogCaptureFixture) -> None:
    weights = weights_of(OLD, 0, 5, 0)
    buffers = create_temp_buffers(weights)
    with caplog.at_level(logging.INFO, "stages.update.api"):
        lines = update_expert_weights_single_layer(weights, buffers, OLD, NEW, 5, 1, 0, debug=True, log_metrics=True)
    assert_slots_hold(weights, NEW, 0, 5, 0)
    assert lines is not None
    assert lines[-2:] == [
        "p2p_op_infos=[(0, []), (1, []), (2, []), (3, [])]",
        "buffer2weight_copy_infos=[(0, 0), (1, 1), (2, 2)]",
    ]
    assert caplog.messages == [
        (
            "[ExpertLocationUpdater] "
            "isend_nbytes_of_gpu=[0] isend_nbytes_of_node=[0] isend_nbytes_curr_node=0 isend_nbytes_cross_node=0 "
            "irecv_nbytes_of_gpu=[0] irecv_nbytes_of_node=[0] irecv_nbytes_curr_node=0 irecv_nbytes_cross_node=0 "
        )
    ]


def test_without_debug_and_metrics_it_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    weights = weights_of(OLD, 0, 5, 0)
    with caplog.at_level(logging.INFO, "stages.update.api"):
        assert update_expert_weights_single_layer(weights, create_temp_buffers(weights), OLD, NEW, 5, 1, 0) is None
    assert not caplog.messages
    assert_slots_hold(weights, NEW, 0, 5, 0)


def test_parameters_of_a_module_move_too() -> None:
    weights = [torch.nn.Parameter(torch.arange(3.0)), torch.nn.Parameter(torch.arange(6.0).view(3, 2))]
    buffers = create_temp_buffers(weights)
    assert not any(buffer.requires_grad for buffer in buffers)
    update_expert_weights_single_layer(weights, buffers, [0, 1, 2], [2, 1, 0], 3, 1, 0)
    assert weights[0].tolist() == [2, 1, 0]
    assert weights[1].tolist() == [[4, 5], [2, 3], [0, 1]]


def test_temp_buffers_are_like_the_weights() -> None:
    weights = weights_of(OLD, 0, 5, 0)
    buffers = create_temp_buffers(weights)
    assert [(b.shape, b.dtype) for b in buffers] == [(w.shape, w.dtype) for w in weights]
    assert not {b.data_ptr() for b in buffers} & {w.data_ptr() for w in weights}


def single_layer(**changed: object) -> None:
    weights = [torch.zeros(2, 3), torch.zeros(2)]
    arguments = {
        "routed_experts_weights": weights,
        "temp_buffers": create_temp_buffers(weights),
        "old_physical_to_logical_map": [0, 1],
        "new_physical_to_logical_map": [1, 0],
        "num_local_physical_experts": 2,
        "num_gpu_per_node": 1,
        "rank": 0,
    }
    update_expert_weights_single_layer(**{**arguments, **changed})


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"routed_experts_weights": [torch.zeros(2, 3), torch.zeros(3)]},
            r"shapes \[\[2, 3\], \[3\]\]; every tensor must have num_local_physical_experts=2 rows",
        ),
        ({"routed_experts_weights": [torch.zeros(())]}, r"shapes \[\[\]\]"),
        ({"temp_buffers": [torch.zeros(2, 3)]}, r"temp_buffers \[\[2, 3\]\] are not like .* \[\[2, 3\], \[2\]\]"),
        ({"old_physical_to_logical_map": torch.tensor([0, 1])}, "old_physical_to_logical_map is a Tensor; a list"),
        ({"new_physical_to_logical_map": (1, 0)}, "new_physical_to_logical_map is a tuple; a list was expected"),
        ({"new_physical_to_logical_map": [1, 0, 0]}, r"\[1, 2\], the new one \[1, 3\]"),
        ({"new_physical_to_logical_map": [1, 2]}, "logical expert 2 is needed in slot 1 "),
        ({"world_size": 2}, "2 slots with num_local_physical_experts=2 do not fit world_size=2 and rank=0"),
        ({"rank": 1}, "do not fit world_size=None and rank=1"),
        (
            {
                "routed_experts_weights": [torch.zeros(2, 3, 4).transpose(1, 2)],
                "temp_buffers": [torch.zeros(2, 4, 3)],
            },
            r"shape \[2, 4, 3\] has strides \[12, 1, 4\]; each of its rows must be contiguous",
        ),
    ],
)
def test_arguments_that_cannot_be(changed: dict[str, object], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        single_layer(**changed)


def metadata(*rows: list[int], ep_size: int = 1) -> ExpertLocationMetadata:
    return ExpertLocationMetadata(torch.tensor(rows), ep_size)


def test_metadata_counts_layers_and_slots() -> None:
    found = metadata([0, 1, 2, 3], [3, 2, 1, 0], ep_size=2)
    assert (found.num_layers, found.num_physical_experts, found.num_local_physical_experts) == (2, 4, 2)


@pytest.mark.parametrize(
    ("tensor", "ep_size", "message"),
    [
        (torch.zeros(2, 4), 2, r"torch.float32 tensor of shape \[2, 4\]"),
        (torch.zeros(4, dtype=torch.int64), 2, r"shape \[4\]; integers \[layers, slots\]"),
        (torch.zeros(2, 4, dtype=torch.int64), 3, "4 slots do not divide evenly over ep_size=3"),
        (torch.zeros(2, 4, dtype=torch.int64), 0, "ep_size=0"),
    ],
)
def test_metadata_that_cannot_be(tensor: torch.Tensor, ep_size: int, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        ExpertLocationMetadata(tensor, ep_size)


def test_global_metadata_is_what_was_set() -> None:
    assert get_global_expert_location_metadata() is None
    current = metadata([0, 1])
    set_global_expert_location_metadata(current)
    assert get_global_expert_location_metadata() is current


def test_update_keeps_the_tensors_that_graphs_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    emptied = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(True))
    current = metadata(OLD, [0, 1, 2, 3, 3], OLD)
    tensor, pointer = current.physical_to_logical_map, current.physical_to_logical_map.data_ptr()
    set_global_expert_location_metadata(current)
    weights = {layer: weights_of(OLD, 0, 5, layer) for layer in (2, 0)}
    addresses = [t.data_ptr() for layer in weights.values() for t in layer]
    updater = ExpertLocationUpdater()
    for new in (metadata(NEW, [0, 1, 2, 3, 3], OLD), metadata(NEW, [0, 1, 2, 3, 3], NEW)):
        updater.update(weights, new, nnodes=1, rank=0)
        assert get_global_expert_location_metadata() is current
        assert current.physical_to_logical_map is tensor
        assert (tensor.data_ptr(), tensor.tolist()) == (pointer, new.physical_to_logical_map.tolist())
    assert_slots_hold(weights[0], NEW, 0, 5, 0)
    assert_slots_hold(weights[2], NEW, 0, 5, 2)
    assert [t.data_ptr() for layer in weights.values() for t in layer] == addresses
    assert emptied == [True]


def test_layers_of_different_shapes_get_their_own_buffers() -> None:
    set_global_expert_location_metadata(metadata([0, 1], [0, 1]))
    weights = {0: [torch.tensor([0.0, 1.0])], 1: [torch.tensor([[0, 0], [1, 1]])]}
    ExpertLocationUpdater().update(weights, metadata([1, 0], [1, 0]), 1, 0)
    assert (weights[0][0].tolist(), weights[1][0].tolist()) == ([1, 0], [[1, 1], [0, 0]])


def test_a_layer_that_fails_leaves_metadata_that_tells_how_far_it_came() -> None:
    current = metadata([0, 1], [0, 1])
    set_global_expert_location_metadata(current)
    weights = {0: [torch.tensor([0.0, 1.0])], 1: [torch.zeros(2, 3, 4).transpose(1, 2)]}
    with pytest.raises(BadInput, match="strides"):
        ExpertLocationUpdater().update(weights, metadata([1, 0], [1, 0]), 1, 0)
    assert current.physical_to_logical_map.tolist() == [[1, 0], [0, 1]]
    assert weights[0][0].tolist() == [1, 0]


@pytest.mark.parametrize(
    ("new", "weights", "nnodes", "message"),
    [
        (metadata([1, 0], [1, 0], ep_size=2), {}, 1, "ep_size is 1 now and 2 in the new metadata"),
        (metadata([1, 0]), {}, 1, r"shape \[2, 2\] now and \[1, 2\] in the new"),
        (metadata([1, 0], [1, 0]), {}, 2, "ep_size=1 ranks do not divide evenly over nnodes=2"),
        (metadata([1, 0], [1, 0]), {2: [torch.zeros(2)]}, 1, r"Layer ids \[2\] are not all within the 2 layers"),
        (metadata([1, 0], [1, 0]), {1: [torch.zeros(3)]}, 1, r"layer 1: routed_experts_weights .* \[\[3\]\]"),
        (metadata([1, 0], [1, 5]), {0: [torch.zeros(2)], 1: [torch.zeros(2)]}, 1, "layer 1: logical expert 5 is"),
    ],
)
def test_updates_that_cannot_be_move_nothing(
    new: ExpertLocationMetadata, weights: dict[int, list[torch.Tensor]], nnodes: int, message: str
) -> None:
    current = metadata([0, 1], [0, 1])
    set_global_expert_location_metadata(current)
    with pytest.raises(BadInput, match=message):
        ExpertLocationUpdater().update(weights, new, nnodes, 0)
    assert current.physical_to_logical_map.tolist() == [[0, 1], [0, 1]]


def test_an_update_needs_metadata_to_start_from() -> None:
    with pytest.raises(BadInput, match="set_global_expert_location_metadata"):
        ExpertLocationUpdater().update({}, metadata([0, 1]), 1, 0)


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, stages.update; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
    with pytest.raises(ImportError):
        from stages.update import nothing  # noqa: F401
