"""Messages between two ranks have no names: both ends must deal the same ones, in the same order, to the same lanes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.batches import cut
from stages.direct import direct_transfers
from stages.exchanges import Exchange, Schedule
from stages.staging import Layout
from stages.update import p2p
from stages.update.p2p import PointToPoint
from stages.update.program import NONE, compile_program
from stages.update.staging import Staging
from tests.stages.maps import MapPair, map_pairs
from tests.stages.update.cases import relayed

SIZES = {"small ones alone": [40, 3], "large ones alone": [(1 << 20) + 8], "both": [(1 << 20) + 8, 40, 3]}


class Wire:
    """In place of the network: what one end hands over, per lane, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ops: list[tuple[bool, torch.Tensor, int]] = []
        monkeypatch.setattr(dist, "P2POp", lambda op, data, peer, group: (op is dist.isend, data, peer))
        monkeypatch.setattr(dist, "batch_isend_irecv", self._take)

    def _take(self, ops: list[tuple[bool, torch.Tensor, int]]) -> list[object]:
        self.ops = ops
        return []

    def of(self, network: PointToPoint, exchange: Exchange, lane: int) -> list[tuple[bool, torch.Tensor, int]]:
        self.ops = []
        network.start(exchange.hops, lane)
        return self.ops


@settings(deadline=None, max_examples=16, derandomize=True)
@given(
    map_pairs(max_nodes=2, max_gpus=3, max_slots=3), st.booleans(), st.booleans(), st.sampled_from([1, 3]),
    st.sampled_from([6, 9]),
)  # fmt: skip
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_both_ends_deal_messages_alike(
    sizes: list[int], maps: MapPair, relays: bool, packs: bool, lanes: int, rows: int
) -> None:
    """Played: every message is delivered to its counterpart, and every expert arrives where it should, and is still there
    when it is committed, whatever goes out with it."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        wire = Wire(monkeypatch)
        play(wire, sizes, maps, relays, packs, lanes, rows)


def play(wire: Wire, sizes: list[int], maps: MapPair, relays: bool, packs: bool, lanes: int, rows: int) -> None:
    plan = direct_transfers(maps.old, maps.new, maps.ranks, maps.gpus_per_node, sum(sizes))
    if relays:
        plan = relayed(plan, maps.ranks)
    layers, slots = maps.old.shape
    per_rank = slots // maps.ranks
    batches = cut(
        plan, layers, slots, maps.ranks, rows=rows, at_once=2, sends_at_once=2 if packs else 0,
        gpus_per_node=maps.gpus_per_node,
    )  # fmt: skip
    layout = Layout.of(sizes)
    programs, networks, stagings = [], [], []
    for rank in range(maps.ranks):
        own = maps.old[:, rank * per_rank : (rank + 1) * per_rank]
        held = [
            [torch.from_numpy(np.repeat((own[layer] % 251 + 1).astype(np.uint8)[:, None], n, axis=1)) for n in sizes]
            for layer in range(layers)
        ]
        staging = Staging(layout, rows, torch.zeros(layout.total(rows), dtype=torch.uint8))
        packed = torch.zeros(4 * layout.small_row, dtype=torch.uint8) if packs and layout.small_row else None
        programs.append(compile_program(plan, batches, rank, per_rank))
        networks.append(PointToPoint(programs[-1], held, staging, packed, [None] * lanes))
        stagings.append(staging)
    sent = np.zeros(maps.ranks)
    schedule = Schedule(programs[0].after, programs[0].phases)
    for batch in range(len(batches)):
        for _, exchange in schedule.due(batch):
            for network in networks if exchange.opens >= 0 else ():
                for target, source in network.packs(exchange.opens):
                    target.copy_(source)
            for lane in range(lanes):
                deliver([wire.of(network, exchange, lane) for network in networks])
        for rank, program in enumerate(programs):
            arrivals, writes = program.arrivals.of(batch), program.writes.of(batch)
            there = [*zip(arrivals.row.tolist(), arrivals.expert.tolist(), strict=True)]
            there += [*zip(writes.from_row.tolist(), writes.expert.tolist(), strict=True)]
            for row, expert in there:
                for k in range(len(sizes) if row != NONE else 0):
                    assert (stagings[rank].tensor(row, k) == expert % 251 + 1).all()
            sent[rank] += len(program.sends.of(batch)) * sum(sizes)
        # Slots are as they were: every expert that is read has its old content, which this test knows by its number.
    assert [network.traffic.sent for network in networks] == sent.tolist()
    assert sum(network.traffic.received for network in networks) == sent.sum()


def deliver(ops: list[list[tuple[bool, torch.Tensor, int]]]) -> None:
    """Every n-th message from one rank to another goes into the n-th that the other expects of it."""
    queues: dict[tuple[int, int], list[torch.Tensor]] = {}
    for rank, own in enumerate(ops):
        for sends, data, peer in own:
            if sends:
                queues.setdefault((rank, peer), []).append(data.clone())
    for rank, own in enumerate(ops):
        for sends, data, peer in own:
            if not sends:
                message = queues[peer, rank].pop(0)
                assert message.shape == data.shape, "the two ends mean different messages"
                data.copy_(message)
    assert not any(queues.values()), "a message that nobody takes"


def test_messages_of_a_peer_are_dealt_in_turn() -> None:
    message = torch.zeros(1)
    messages = [(message, peer) for peer in (1, 2, 1, 1, 2, 1)]
    dealt = [[peer for _, peer in p2p._dealt(messages, lane, 2)] for lane in range(2)]
    assert dealt == [[1, 2, 1], [1, 2, 1]]
    assert p2p._dealt(messages, 0, 1) == messages
