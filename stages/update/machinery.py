"""Puts together what runs a program on a rank: staging, transport and lane, by backend and transport."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist

from stages.errors import MoesaicError
from stages.staging import Budget
from stages.update.config import UpdateOptions, UpdateStageConfig
from stages.update.exchange import Traffic
from stages.update.failures import tidy
from stages.update.lane import NO_HOOKS, Commit, Hooks, Lane, Spans
from stages.update.machine import transport
from stages.update.moved import Event
from stages.update.p2p import PointToPoint
from stages.update.program import Program
from stages.update.rank import Rank
from stages.update.staging import Staging
from stages.update.truth import Sums

Slots = Sequence[Sequence[torch.Tensor]]
NO_MEMORY = re.compile("can't allocate memory|out of memory|ncclMemAlloc failed", re.IGNORECASE)
"""What torch says on a CPU, on a GPU, and of memory that NCCL knows."""


@dataclass(frozen=True)
class Machinery:
    """`events` and `traffic`: what happened, once the device is idle. `another`: a lane for another program over the same
    staging, when the first has stopped on all ranks, which all call it. `close`: all ranks are done with it."""

    lane: Lane
    staging: Staging
    events: Callable[[], list[Event]]
    traffic: Callable[[], Traffic]
    another: Callable[[Program], Lane]
    close: Callable[[], None]


def transport_of(rank: Rank, options: UpdateOptions) -> str:
    """What all ranks can use: `peer` only if each of them sees the GPUs of all others."""
    own = transport(options.transport, rank.backend, options.oversubscribe, rank.ranks)
    possible = torch.tensor([own == "peer"], dtype=torch.int32, device=rank.device)
    dist.all_reduce(possible, op=dist.ReduceOp.MIN)
    return own if own != "peer" or possible.item() else "nccl"


def assemble(
    rank: Rank, way: str, config: UpdateStageConfig, program: Program, slots: Slots, spent: Budget,
    truth: Sums | None, on_commit: Commit, origin: float, hooks: Hooks,
) -> Machinery:  # fmt: skip
    if rank.device.type == "cpu":
        return _on_host(config, program, slots, spent, truth, on_commit, origin, hooks)
    return _on_device(rank, way, config, program, slots, spent, truth, on_commit, origin, hooks)


def _on_host(
    config: UpdateStageConfig, program: Program, slots: Slots, spent: Budget,
    truth: Sums | None, on_commit: Commit, origin: float, hooks: Hooks,
) -> Machinery:  # fmt: skip
    from stages.update.host_lane import HostLane

    nbytes = spent.nbytes(config.staging_layout)
    with _room_for(nbytes):
        data = torch.empty(nbytes, dtype=torch.uint8)
    staging, packed = _split(config, spent, data)
    network = PointToPoint(program, slots, staging, packed)
    spans = Spans(origin)
    lane = HostLane(program, slots, staging, network, truth, on_commit, spans, hooks)

    def another(program: Program) -> Lane:
        network = PointToPoint(program, slots, staging, None)
        return HostLane(program, slots, staging, network, truth, _nothing, Spans(origin), NO_HOOKS)

    return Machinery(lane, staging, lambda: spans.found, lambda: network.traffic, another, lambda: None)


def _nothing(batch: int) -> None:
    """A `Commit` that nobody records."""


@contextmanager
def _room_for(nbytes: int) -> Iterator[None]:
    """Say what to do where the block finds no memory for staging."""
    try:
        yield
    except RuntimeError as error:
        if not NO_MEMORY.search(str(error)):
            raise
        raise MoesaicError(
            f"{nbytes:,} bytes of staging cannot be had ({tidy(str(error))}): nothing was moved; use a smaller "
            "update.staging_mib."
        ) from error


def _split(config: UpdateStageConfig, spent: Budget, data: torch.Tensor) -> tuple[Staging, torch.Tensor | None]:
    """Memory for arrivals, and for copies of what is sent."""
    edge = config.staging_layout.total(spent.rows)
    return Staging(config.staging_layout, spent.rows, data[:edge]), data[edge:] if spent.packed else None


def _on_device(
    rank: Rank, way: str, config: UpdateStageConfig, program: Program, slots: Slots, spent: Budget,
    truth: Sums | None, on_commit: Commit, origin: float, hooks: Hooks,
) -> Machinery:  # fmt: skip
    from stages.update.device_lane import DeviceLane, Transport
    from stages.update.nccl_memory import registrable
    from stages.update.nccl_transport import NcclTransport, message_groups, vote_group
    from stages.update.peer_transport import PeerMemory, PeerTransport
    from stages.update.stream_clock import StreamClock

    timeout, nbytes, clock = config.update.timeout_seconds, spent.nbytes(config.staging_layout), StreamClock(origin)
    carrier: Transport
    if way == "peer":
        with _room_for(nbytes):
            memory = PeerMemory(rank.rank, rank.ranks, nbytes, rank.device)
        staging, _ = _split(config, spent, memory.data)
        carrier = peers = PeerTransport(program, slots, staging, memory, timeout)
        traffic, close = peers.traffic, memory.close

        def carrier_of(program: Program) -> Transport:
            rank.barrier()
            memory.own_pad.zero_()  # ranks count their meetings from the start again
            rank.barrier()
            return PeerTransport(program, slots, staging, memory, timeout)
    else:
        with registrable(rank.device), _room_for(nbytes):
            data = torch.empty(nbytes, dtype=torch.uint8, device=rank.device)
        staging, packed = _split(config, spent, data)
        network = PointToPoint(program, slots, staging, packed, message_groups(rank))
        carrier = nccl = NcclTransport(program, network, vote_group(rank), rank.device)
        traffic, close = network.traffic, nccl.close

        def carrier_of(program: Program) -> Transport:
            messages = PointToPoint(program, slots, staging, None, network.lanes)
            return NcclTransport(program, messages, vote_group(rank), rank.device)

    lane = DeviceLane(program, slots, staging, carrier, truth, on_commit, clock, hooks, timeout)

    def another(program: Program) -> Lane:
        again = carrier_of(program)
        return DeviceLane(program, slots, staging, again, truth, _nothing, StreamClock(origin), NO_HOOKS, timeout)

    return Machinery(lane, staging, clock.events, lambda: traffic, another, close)
