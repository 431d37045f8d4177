"""What the ranks of the API's tests do, each in a process of its own over gloo. A failed assertion fails the test."""

from __future__ import annotations

import logging
import math
import os
import re
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from stages import synthetic
from stages.errors import BadInput, Corruption
from stages.expert_map import EMPTY, ExpertMap
from stages.staging import MIB, Layout
from stages.update import (
    ExpertLocationMetadata,
    ExpertLocationUpdater,
    create_temp_buffers,
    get_global_expert_location_metadata,
    set_global_expert_location_metadata,
    update_expert_weights_single_layer,
)
from stages.update.config import UpdateOptions
from stages.update.host_lane import HostLane
from tests.stages.direct_reference import GoldenCase

DTYPES = {
    (6, 5): torch.float8_e4m3fn,
    (7,): torch.bfloat16,
    (): torch.float32,
    (3, 1, 3): torch.int8,
    (2, 3): torch.float16,
}
"""Shape of one expert's tensor -> dtype; the float32 one is a scale, one number an expert."""

EXPERT_BYTES = 30 + 14 + 4 + 9 + 12


def weights_of(expert_map: list[int], rank: int, slots_per_rank: int, layer: int) -> list[torch.Tensor]:
    """The tensors of `rank`, every byte of a slot following from its expert."""
    here = np.array(expert_map[rank * slots_per_rank : (rank + 1) * slots_per_rank])
    tensors = [torch.zeros((slots_per_rank, *shape), dtype=dtype) for shape, dtype in DTYPES.items()]
    for number, tensor in enumerate(tensors):
        synthetic.fill(tensor, 7, np.full(len(here), layer), here, number)
    return tensors


def assert_slots_hold(
    weights: list[torch.Tensor], expert_map: list[int], rank: int, slots_per_rank: int, layer: int
) -> None:
    """Every slot that is not empty in `expert_map` holds all bytes of all tensors of its expert."""
    here = np.array(expert_map[rank * slots_per_rank : (rank + 1) * slots_per_rank])
    for found, expected in zip(weights, weights_of(expert_map, rank, slots_per_rank, layer), strict=True):
        filled = torch.from_numpy(here != EMPTY)
        assert torch.equal(
            found.view(slots_per_rank, -1).view(torch.uint8)[filled],
            expected.view(slots_per_rank, -1).view(torch.uint8)[filled],
        )


def expected_strings(case: GoldenCase, rank: int) -> list[str]:
    """The decisions of `rank`, from the golden answers alone."""
    recv, ops = case.ranks[rank]["recv"], case.ranks[rank]["ops"]
    lines = []
    for slot in recv:
        source = {"src_slot": "src_expert_location", "src_rank": "chosen_src_rank"}
        rest = "".join(f" {source[key]}={value}" for key, value in slot.items() if key in source)
        lines.append(f"handle_recv_of_dst_expert_location dst_expert_location={slot['slot']} case={slot['case']}{rest}")
    handled = set()
    for slot in range(rank * case.slots_per_rank, (rank + 1) * case.slots_per_rank):
        if (expert := case.old[slot]) in handled:
            continue
        handled.add(expert)
        peers = [peer for direction, peer, source in ops if direction == "isend" and source == slot]
        near = [peer for peer in peers if peer // case.gpus_per_node == rank // case.gpus_per_node]
        far = [peer for peer in peers if peer not in near]
        lines.append(
            f"create_isend_ops_of_logical_expert_id logical_expert_id={expert} src_expert_location={slot} "
            f"same_node_dst_ranks={near} cross_node_dst_ranks={far}"
        )
    return lines


def expected_copies(case: GoldenCase, rank: int) -> list[tuple[int, int]]:
    changed = [slot for slot in case.ranks[rank]["recv"] if slot["case"] != "unchanged"]
    return [(s["src_slot"] if s["case"] == "free-rider" else s["slot"], s["slot"]) for s in changed]


def expected_metrics(case: GoldenCase, rank: int, expert_bytes: int) -> str:
    line = "[ExpertLocationUpdater] "
    for direction in ("isend", "irecv"):
        gpus = [0] * case.world_size
        for op, peer, _ in case.ranks[rank]["ops"]:
            gpus[peer] += expert_bytes * (op == direction)
        nodes = [sum(gpus[n * case.gpus_per_node : (n + 1) * case.gpus_per_node]) for n in range(case.nodes)]
        here = nodes[rank // case.gpus_per_node]
        line += (
            f"{direction}_nbytes_of_gpu={gpus} {direction}_nbytes_of_node={nodes} "
            f"{direction}_nbytes_curr_node={here} {direction}_nbytes_cross_node={sum(nodes) - here} "
        )
    return line


class Lines(logging.Handler):
    """Keeps the messages of the API's logger."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []
        logger = logging.getLogger("stages.update.api")
        logger.setLevel(logging.INFO)
        logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def join(rank: int, world_size: int, folder: str) -> None:
    torch.set_num_threads(1)
    store = Path(folder) / "store"
    dist.init_process_group("gloo", f"file://{store}", timedelta(seconds=60), world_size, rank)


def run_golden_cases(rank: int, world_size: int, folder: str, cases: list[GoldenCase]) -> None:
    """Move the weights of each case as one layer; its strings, log line and weights must be the golden ones."""
    join(rank, world_size, folder)
    log = Lines()
    for number, case in enumerate(cases):
        weights = weights_of(case.old, rank, case.slots_per_rank, number)
        lines = update_expert_weights_single_layer(
            weights,
            create_temp_buffers(weights),
            case.old,
            case.new,
            case.slots_per_rank,
            case.gpus_per_node,
            rank,
            world_size=world_size if number % 2 else None,
            debug=True,
            log_metrics=True,
        )
        assert lines is not None
        assert lines[:-2] == expected_strings(case, rank)
        check_op_infos(lines[-2], case.ranks[rank]["ops"])
        assert lines[-1] == f"buffer2weight_copy_infos={expected_copies(case, rank)}"
        assert log.messages.pop() == expected_metrics(case, rank, EXPERT_BYTES)
        assert not log.messages
        assert_slots_hold(weights, case.new, rank, case.slots_per_rank, number)
    dist.destroy_process_group()


def check_op_infos(line: str, ops: list[list]) -> None:
    """`line` names the golden ops in order, each once for every tensor, under ascending logical experts."""
    assert line.startswith("p2p_op_infos=[(")
    found = re.findall(r"P2POp\((isend|irecv) .*?group_src=(\d+), group_dst=(\d+)", line)
    peers = [(direction, int(dst if direction == "isend" else src)) for direction, src, dst in found]
    assert peers == [(direction, peer) for direction, peer, _ in ops for _ in DTYPES]
    experts = [int(expert) for expert in re.findall(r"\((\d+), \[", line)]
    assert experts == sorted(set(experts))


def run_in_the_background(
    rank: int, world_size: int, folder: str, maps: list[ExpertMap], staged: int, verify: bool
) -> None:
    """Go through `maps` in calls that each commit what the one before has staged; after each call the metadata is right.

    The last map but one is given up half way: the next call goes on to the last.
    """
    join(rank, world_size, folder)
    slots_per_rank = maps[0].shape[1] // world_size
    held = torch.from_numpy(maps[0].copy())
    set_global_expert_location_metadata(ExpertLocationMetadata(held, world_size))
    weights = {layer: weights_of(maps[0][layer].tolist(), rank, slots_per_rank, layer) for layer in range(len(held))}
    layout = Layout.of([math.prod(shape) * dtype.itemsize for shape, dtype in DTYPES.items()])
    options = UpdateOptions(
        journal=None, staging_mib=(staged + 0.5) * layout.row_bytes / MIB, verify_before_commit=verify
    )
    updater = ExpertLocationUpdater(options=options, background=True)
    calls = []
    for number, new in enumerate(maps[1:]):
        calls.append(0)
        while True:
            updater.update(weights, ExpertLocationMetadata(torch.from_numpy(new), world_size), 1, rank)
            calls[-1] += 1
            for layer in weights:
                assert_slots_hold(weights[layer], held[layer].tolist(), rank, slots_per_rank, layer)
                assert set(maps[0][layer].tolist()) <= {*held[layer].tolist(), EMPTY}, "an expert is nowhere"
            if not updater.pending or (number == len(maps) - 3 and calls[-1] == 2):
                break
    assert np.array_equal(held.numpy(), maps[-1])
    assert max(calls) > 2
    dist.destroy_process_group()


def run_updater(
    rank: int, world_size: int, folder: str, maps: list[ExpertMap], layer_ids: list[int], nnodes: int
) -> None:
    """Go through `maps` (each `[layers, P]`) one after the other, moving the layers `layer_ids` of a model."""
    join(rank, world_size, folder)
    os.environ["SGLANG_EXPERT_LOCATION_UPDATER_LOG_METRICS"] = "1"
    log = Lines()
    slots_per_rank = maps[0].shape[1] // world_size
    held = torch.from_numpy(maps[0].copy())
    set_global_expert_location_metadata(ExpertLocationMetadata(held, world_size))
    weights = {layer: weights_of(maps[0][layer].tolist(), rank, slots_per_rank, layer) for layer in layer_ids}
    updater = ExpertLocationUpdater()
    for new in maps[1:]:
        updater.update(weights, ExpertLocationMetadata(torch.from_numpy(new), world_size), nnodes, rank)
        current = get_global_expert_location_metadata()
        assert current is not None
        assert current.physical_to_logical_map.data_ptr() == held.data_ptr()
        assert np.array_equal(held[layer_ids].numpy(), new[layer_ids])
        for layer in layer_ids:
            assert_slots_hold(weights[layer], new[layer].tolist(), rank, slots_per_rank, layer)
    assert len(log.messages) == (len(maps) - 1) * len(layer_ids)
    dist.destroy_process_group()


def run_some_layers(rank: int, world_size: int, folder: str, maps: list[ExpertMap]) -> None:
    """Layers 2 and 0, then the others; those that were not asked for stay as they are."""
    join(rank, world_size, folder)
    slots_per_rank = maps[0].shape[1] // world_size
    held = torch.from_numpy(maps[0].copy())
    set_global_expert_location_metadata(ExpertLocationMetadata(held, world_size))
    weights = {layer: weights_of(maps[0][layer].tolist(), rank, slots_per_rank, layer) for layer in range(len(held))}
    target = ExpertLocationMetadata(torch.from_numpy(maps[1]), world_size)
    updater = ExpertLocationUpdater()
    for asked, done in (([2, 0], [0, 2]), ([1, 3], [0, 1, 2, 3])):
        updater.update(weights, target, 1, rank, update_layer_ids=asked)
        for layer in weights:
            expected = maps[layer in done][layer].tolist()
            assert held[layer].tolist() == expected
            assert_slots_hold(weights[layer], expected, rank, slots_per_rank, layer)
    dist.destroy_process_group()


def run_over_a_bad_link(rank: int, world_size: int, folder: str, maps: list[ExpertMap], at: int) -> None:
    """What arrives at rank 1 from batch `at` on is wrong for a while: the call says so, and leaves the engine with weights that
    are all there, each where the metadata says; the same call goes on once the link is good."""
    join(rank, world_size, folder)
    slots_per_rank = maps[0].shape[1] // world_size
    held = torch.from_numpy(maps[0].copy())
    set_global_expert_location_metadata(ExpertLocationMetadata(held, world_size))
    weights = {layer: weights_of(maps[0][layer].tolist(), rank, slots_per_rank, layer) for layer in range(len(held))}
    layout = Layout.of([math.prod(shape) * dtype.itemsize for shape, dtype in DTYPES.items()])
    updater = ExpertLocationUpdater(options=UpdateOptions(journal=None, staging_mib=2.5 * layout.row_bytes / MIB))
    target = ExpertLocationMetadata(torch.from_numpy(maps[1]), world_size)
    arrive = HostLane._arrive

    def arrive_wrong(lane: HostLane, batch: int) -> None:
        arrive(lane, batch)
        rows = lane._program.arrivals.of(batch).row
        if rank == 1 and batch >= at and len(rows):
            lane._staging.tensor(int(rows[0]), 0)[3] ^= 1

    HostLane._arrive = arrive_wrong
    with pytest.raises(Corruption, match=r"arrived wrong at rank 1 .*: the same call goes on from there\.$"):
        updater.update(weights, target, 1, rank)
    HostLane._arrive = arrive
    for layer in weights:
        assert_slots_hold(weights[layer], held[layer].tolist(), rank, slots_per_rank, layer)
        assert set(held[layer].tolist()) == set(maps[0][layer].tolist()), "an expert is held nowhere"
    assert not np.array_equal(held.numpy(), maps[0])
    updater.update(weights, target, 1, rank)
    assert np.array_equal(held.numpy(), maps[1])
    for layer in weights:
        assert_slots_hold(weights[layer], maps[1][layer].tolist(), rank, slots_per_rank, layer)
    dist.destroy_process_group()


def run_with_other_maps(rank: int, world_size: int, folder: str, maps: list[ExpertMap]) -> None:
    """Each rank is told to go to another map: none moves anything."""
    join(rank, world_size, folder)
    slots_per_rank = maps[0].shape[1] // world_size
    held = torch.from_numpy(maps[0].copy())
    set_global_expert_location_metadata(ExpertLocationMetadata(held, world_size))
    weights = {layer: weights_of(maps[0][layer].tolist(), rank, slots_per_rank, layer) for layer in range(len(held))}
    target = ExpertLocationMetadata(torch.from_numpy(maps[1 + rank]), world_size)
    with pytest.raises(BadInput, match=r"^Rank 1 has another plan than rank 0, .*: nothing was moved"):
        ExpertLocationUpdater().update(weights, target, 1, rank)
    assert np.array_equal(held.numpy(), maps[0])
    for layer in weights:
        assert_slots_hold(weights[layer], maps[0][layer].tolist(), rank, slots_per_rank, layer)
    dist.destroy_process_group()
