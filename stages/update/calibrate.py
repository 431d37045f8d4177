"""Measures the links and devices that predictions need, between real ranks: over gloo on CPUs and NCCL on GPUs alike.

What goes out is what the executors hand to `torch.distributed`, through the same `exchange`: every rank sends to the
next one and receives from the one before, inside its node and between nodes, in messages from small to large. Each
time is that of the slowest rank, the best of a few tries.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from stages.checksum import checksum_rows
from stages.errors import BadInput
from stages.temporary import temporary_folder
from stages.topology import Device, Link, Links, Topology
from stages.update import machine
from stages.update.api import create_temp_buffers, update_expert_weights_single_layer
from stages.update.calibrate_executors import measure_executors
from stages.update.exchange import exchange
from stages.update.launch import launch
from stages.update.link import connect_all
from stages.update.network import network_defaults
from stages.update.progress_board import ProgressBoard
from stages.update.rank import Rank, joined
from stages.update.seat import Seat, find_seat
from stages.update.stores import host_store, join_store, prefixed

SMALLEST, STEP = 1 << 14, 4
LARGEST = {"gloo": 1 << 26, "nccl": 1 << 30}
TRIES = 5
LONG_SECONDS = 0.5
"""A message that takes this long is the last and largest that is tried."""
SHORT_SECONDS = 0.02
"""What takes less is repeated until it takes as long."""
MANY_MESSAGES = 32
NODE_SHARE = 0.9
"""Of the sum of its GPUs' speeds: a node that has more than this is no limit of its own."""
TIMEOUT_SECONDS = 300.0
SLOTS, LAYER_ELEMENTS = 8, 4


@dataclass(frozen=True)
class Found:
    """What was measured, and on what."""

    topology: Topology
    backend: str
    device: str
    hosts: int


def calibrate(name: str, nodes: int | None, gpus_per_node: int | None, backend: str = "auto") -> Found | None:
    """The topology `name` as it is measured here; None on ranks that only take part.

    The ranks are those that torchrun or Slurm started, one node a host, or else started here: a rank for every GPU, or
    2 nodes of 4 on the CPU. `nodes` and `gpus_per_node` say otherwise. Raises `BadInput` where that cannot be.
    """
    seat = find_seat()
    if seat is not None:
        nodes, gpus_per_node = nodes or seat.hosts, gpus_per_node or seat.ranks // (nodes or seat.hosts)
    else:
        gpus = 0 if backend == "gloo" else len(machine.gpus())
        nodes = nodes or (1 if gpus > 1 or gpus_per_node else 2)
        gpus_per_node = gpus_per_node or (max(1, gpus // nodes) if gpus > 1 else 4)
    ranks = nodes * gpus_per_node
    if ranks < 2:
        raise BadInput("There is no link to measure: at least two ranks are needed (--nodes, --gpus-per-node).")
    found = machine.find(backend, "auto", False, ranks)
    topology = Topology(name, nodes, gpus_per_node)
    if seat is not None:
        measured = _attached(seat, topology, found.backend)
    else:
        with temporary_folder("calibrate") as folder:
            file = folder / "topology.json"
            launch(save, (topology, file), ranks, backend=found.backend, timeout_seconds=TIMEOUT_SECONDS)
            measured = _from_json(json.loads(file.read_text(encoding="utf-8")))
    if seat is not None and seat.rank > 0:
        return None
    return Found(measured, found.backend, found.device, found.hosts)


def save(rank: Rank, topology: Topology, file: Path) -> None:
    """Take part; rank 0 leaves what was found in `file`."""
    measured = measure(rank, topology)
    if rank.rank == 0:
        file.write_text(json.dumps(asdict(measured)), encoding="utf-8")


def measure(rank: Rank, topology: Topology) -> Topology:
    """`topology` with the speeds that its ranks have here. All ranks call it and find the same."""
    connect_all(rank)
    links, gpus = topology.links, topology.gpus_per_node
    if gpus > 1:
        first = rank.rank - rank.rank % gpus
        after, before = (first + (rank.rank + step) % gpus for step in (1, -1))
        links.within_node, _ = _measure_link(rank, after, before)
    if topology.nodes > 1:
        after, before = ((rank.rank + step * gpus) % rank.ranks for step in (1, -1))
        alone = rank.rank % gpus == 0
        links.between_nodes, largest = _measure_link(rank, after, before, takes_part=alone)
        share = max(SMALLEST, largest // gpus)
        together = gpus * share / _seconds(rank, partial(_swap, rank, share, after, before)) / 1e9
        links.node_gb_per_s = (
            round(together, 6) if together < NODE_SHARE * gpus * links.between_nodes.gb_per_s else None
        )
    if gpus == 1:
        links.within_node = links.between_nodes
    if topology.nodes == 1:
        links.between_nodes = links.within_node
    topology.device = _measure_device(rank, topology)
    if rank.backend == "nccl":  # over sockets a message takes what the link needs for it
        topology.device = measure_executors(rank, topology)
    return topology


def _measure_link(rank: Rank, after: int, before: int, *, takes_part: bool = True) -> tuple[Link, int]:
    """The link over which each rank that takes part sends to `after` and receives from `before`, and the size of the
    largest message tried."""
    times: list[tuple[int, float]] = []
    size = SMALLEST
    while True:
        seconds = _seconds(rank, partial(_swap, rank, size, after, before) if takes_part else _idle)
        times.append((size, seconds))
        if size * STEP > LARGEST[rank.backend] or seconds > LONG_SECONDS:
            break
        size *= STEP
    swap_many = partial(_swap, rank, SMALLEST, after, before, MANY_MESSAGES)
    many = _seconds(rank, swap_many if takes_part else _idle)
    return link_of(times, many), times[-1][0]


def link_of(times: list[tuple[int, float]], many: float) -> Link:
    """From the seconds of one message of each size, in ascending order, and of `MANY_MESSAGES` that make the smallest.

    A message takes no longer than a larger one: where it was measured to, something else was going on.
    """
    sizes, seconds = np.array(times).T
    seconds = np.minimum.accumulate(seconds[::-1])[::-1]
    latency = max(0.0, many - seconds[0]) / (MANY_MESSAGES - 1)
    moving = np.maximum(seconds - latency, seconds / MANY_MESSAGES)
    speed = (sizes / moving).max()
    fractions = np.minimum(1.0, sizes / moving / speed)
    return Link(
        round(float(speed) / 1e9, 6),
        round(latency * 1e6, 3),
        [[float(nbytes), round(float(fraction), 6)] for nbytes, fraction in zip(sizes, fractions, strict=True)],
    )


def _swap(rank: Rank, nbytes: int, after: int, before: int, messages: int = 1) -> None:
    """Send `nbytes` in so many messages and receive as much, at once."""
    outgoing, incoming = (_buffer(rank, side, nbytes) for side in range(2))
    part = nbytes // messages
    ops = []
    for index in range(messages):
        piece = slice(index * part, (index + 1) * part)
        ops.append(dist.P2POp(dist.isend, outgoing[piece], after))
        ops.append(dist.P2POp(dist.irecv, incoming[piece], before))
    exchange(ops)


def _idle() -> None:
    """What a rank does that takes no part."""


_buffers: list[torch.Tensor] = []


def _buffer(rank: Rank, side: int, nbytes: int) -> torch.Tensor:
    """[nbytes] of memory that has been touched before."""
    if not _buffers or _buffers[0].nbytes < nbytes or _buffers[0].device != rank.device:
        _buffers[:] = [torch.zeros(nbytes, dtype=torch.uint8, device=rank.device) for _ in range(2)]
    return _buffers[side][:nbytes]


def _seconds(rank: Rank, action: Callable[[], object]) -> float:
    """Of `action` on the slowest rank, once it has been done before; the best of a few tries."""
    once = _timed(rank, action, 1)
    times = max(1, min(100, int(SHORT_SECONDS / max(once, 1e-6))))
    return min(_timed(rank, action, times) for _ in range(TRIES if once < LONG_SECONDS else 3))


def _timed(rank: Rank, action: Callable[[], object], times: int) -> float:
    rank.barrier()
    begin = time.perf_counter()
    for _ in range(times):
        action()
    rank.synchronize()
    return rank.slowest(time.perf_counter() - begin) / times


def _measure_device(rank: Rank, topology: Topology) -> Device:
    """Copies and checksums of a large message, by all ranks at once; a layer in which nothing moves; a vote."""
    size = LARGEST[rank.backend]
    outgoing, incoming = (_buffer(rank, side, size) for side in range(2))
    copying = _seconds(rank, lambda: incoming.copy_(outgoing))
    hashing, less = (_seconds(rank, partial(checksum_rows, outgoing[:n].view(SLOTS, -1))) for n in (size, size // 2))
    hashing = max(hashing / 10, (hashing - less) * 2)  # beside what each call costs; half is long beside a call, too
    slots = [torch.zeros((SLOTS, LAYER_ELEMENTS), device=rank.device)]
    buffers, experts = create_temp_buffers(slots), list(range(SLOTS * rank.ranks))

    def plan_layer() -> None:
        update_expert_weights_single_layer(
            slots, buffers, experts, experts, SLOTS, topology.gpus_per_node, rank.rank, rank.ranks
        )

    vote = torch.zeros(1, dtype=torch.int32, device=rank.device)
    return Device(
        copy_gb_per_s=round(size / copying / 1e9, 3),
        checksum_gb_per_s=round(size / hashing / 1e9, 3),
        layer_us=round(_seconds(rank, plan_layer) * 1e6, 1),
        batch_us=round(_seconds(rank, lambda: dist.all_reduce(vote)) * 1e6, 1),
    )


def _attached(seat: Seat, topology: Topology, backend: str) -> Topology:
    os.environ.update(network_defaults(loopback=seat.hosts == 1, meeting_place=seat.address))
    hosted = host_store(seat.port) if seat.rank == 0 and not seat.agent_store else None
    store = prefixed(f"moesaic-calibrate/{seat.restart}", join_store(seat.address, seat.port, TIMEOUT_SECONDS))
    with joined(
        store,
        seat.rank,
        seat.ranks,
        backend=backend,
        local_rank=seat.local_rank,
        timeout_seconds=TIMEOUT_SECONDS,
        board=ProgressBoard(None, seat.ranks),
    ) as rank:
        measured = measure(rank, topology)
    del hosted
    return measured


def _from_json(value: dict[str, object]) -> Topology:
    links, device = value.pop("links"), value.pop("device")
    assert isinstance(links, dict)
    assert isinstance(device, dict)
    within, between = Link(**links["within_node"]), Link(**links["between_nodes"])
    return Topology(**value, links=Links(within, between, links["node_gb_per_s"]), device=Device(**device))  # type: ignore[arg-type]
