"""What carrying out a plan costs, by the speeds of a topology: seconds of each layer or batch, and the busiest link.

A GPU has one link into its node's fabric and one to the network, each with two directions, and a node has one to the
network that its GPUs share. All go at once. What a rank sends or receives over a link in one group takes

    messages * latency + bytes / (speed * fraction(bytes))

with the fraction from the link's measured curve.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stages.exchanges import opened_by, phases_of
from stages.topology import Floats, Link, Topology
from stages.transfers import Ints, Kind, TransferPlan

IN_FLIGHT, NONE = 2, -1
"""Batches at once where a host runs them: one on its way while the one before is checked and committed."""
COPIES = {Kind.same_gpu: 2, Kind.free_rider: 1}
"""Copies of an expert within its rank, through staging; one for all others."""


@dataclass(frozen=True)
class Prediction:
    """`seconds` of the whole; `parts`: of each layer (reference executor) or batch (pipelined)."""

    executor: str
    seconds: float
    parts: Floats


def predict_reference(
    plan: TransferPlan, topology: Topology, layers: int, tensors: int, *, one_group: bool
) -> Prediction:
    """The reference executor: layer after layer, one operation per expert and tensor, slots written after each layer.

    `one_group`: all operations of a layer go out at once, as the published updater does with `direct`; else each
    round is a group. Where `device.layer_message_us` is known a GPU carries them out: a host queues them, layers ahead
    of it where it can, and whichever of the two has more to do sets the pace; there NCCL cuts a layer's messages into
    kernels that do not fill the link (`device.layer_share`).
    """
    order = np.arange(len(plan)) if one_group else np.lexsort((plan.round, plan.layer))
    plan = plan.select(order)
    device = topology.device
    queued = device.layer_message_us is not None
    after = _copy_seconds(plan, plan.layer, layers, topology) + (0.0 if queued else device.layer_us * 1e-6)
    network = plan.select(plan.network)
    groups = network.layer if one_group else network.layer * (network.round.max(initial=0) + 1) + network.round
    host = _queueing(plan, topology, layers, tensors) if queued else np.zeros((2, layers))
    through = np.cumsum(host.sum(axis=0))
    done = _finish(
        network, network.layer, groups, topology, tensors, _latencies(topology, device.batch_message_us),
        through - host[1], after, barrier=False, curved=not queued, share=device.layer_share if queued else 1.0,
    )  # fmt: skip
    done = np.maximum(done, through)
    return Prediction("reference", float(done.max(initial=0.0)), np.diff(done, prepend=0.0))


def _queueing(plan: TransferPlan, topology: Topology, layers: int, tensors: int) -> Floats:
    """[2, L]: seconds of the slowest host until a layer's messages are queued, and then until its copies are.

    A host handles each expert that it sends, receives or copies as often as it has tensors, and once to plan it.
    """
    sent, aside, lands = plan.network, plan.kind == Kind.same_gpu, plan.dst_slot >= 0
    ones = np.ones(len(plan), dtype=np.int64)
    first = _per_rank(plan.layer[sent], plan.src_rank[sent], ones[sent] * (tensors + 1), layers, topology.ranks)
    first += _per_rank(plan.layer, plan.dst_rank, 1 + (sent | aside) * tensors, layers, topology.ranks)
    then = _per_rank(plan.layer, plan.dst_rank, lands * tensors, layers, topology.ranks)
    each = (topology.device.layer_message_us or 0.0) * 1e-6
    found: Floats = np.stack([first.max(axis=1, initial=0.0), then.max(axis=1, initial=0.0)]) * each
    found[0] += topology.device.layer_us * 1e-6
    return found


def predict_pipelined(
    plan: TransferPlan, batch: Ints, phase: Ints, after: Ints, topology: Topology, tensors: int, *, checked: bool = True
) -> Prediction:
    """The pipelined executor. `batch`, `phase` [N]: the batch of each row, and which of its hops one is. `after` [B]: the
    batch whose commit each waits for.

    The network of a batch, exchange by exchange, overlaps what is done with the ones before: hashing what arrived, and
    copying it into the slots (`checked`: what arrives is hashed before). Where `device.batch_message_us` is known a GPU
    does all that: messages are queued beforehand and go out at full speed, and hashing, copying and packing overlap each
    other too. Else a host does, which has but two batches in hand.
    """
    batches = len(after)
    device, queued = topology.device, topology.device.batch_message_us is not None
    if not queued:
        after = np.maximum(after, np.arange(batches) - IN_FLIGHT)
    phases = phases_of(batch[plan.network], phase[plan.network], batches)
    opened = opened_by(after, phases)
    exchange = opened[batch] + phase
    order = np.argsort(exchange, kind="stable")
    plan, batch, exchange = plan.select(order), batch[order], exchange[order]
    crossing, exchanges = plan.network, int((opened + phases).max(initial=0))
    done = _finish(
        plan.select(crossing), exchange[crossing], exchange[crossing], topology, tensors,
        _latencies(topology, device.batch_message_us), np.zeros(exchanges), np.zeros((exchanges, topology.ranks)),
        barrier=True, curved=not queued,
    )  # fmt: skip
    moving = np.diff(done, prepend=0.0)
    moving[opened] += device.batch_us * 1e-6
    packed = _per_rank(batch[crossing], plan.src_rank[crossing], plan.bytes[crossing], batches, topology.ranks)
    hashed = _per_rank(batch[crossing], plan.dst_rank[crossing], plan.bytes[crossing], batches, topology.ranks)
    packing, hashing = packed / (device.copy_gb_per_s * 1e9), hashed * checked / (device.checksum_gb_per_s * 1e9)
    copying = _copy_seconds(plan, batch, batches, topology, in_place=queued)
    steps = [hashing, copying] if queued else [packing + hashing + copying]
    done = _overlapped(moving, opened, phases, after, [seconds.max(axis=1, initial=0.0) for seconds in steps])
    return Prediction("pipelined", float(done.max(initial=0.0)), np.diff(done, prepend=0.0))


def _overlapped(moving: Floats, opened: Ints, phases: Ints, after: Ints, steps: list[Floats]) -> Floats:
    """[B]: when each batch is through: all of its exchanges (`moving`: seconds of each, one after the other), and `steps`
    (seconds [B] of each), which do one batch at a time. It is opened when the one it comes `after` is through."""
    through = np.zeros(len(opened) + 1)  # [-1]: what a batch waits for that waits for none
    sent = np.zeros(len(moving))
    opener = dict(zip(opened.tolist(), after.tolist(), strict=True))
    at, made = [0.0] * len(steps), 0
    for b, last in enumerate((opened + phases - 1).tolist()):
        while made <= last:
            sent[made] = max(sent[made - 1], through[opener.get(made, NONE)]) + moving[made]
            made += 1
        clock = float(sent[last])
        for n, step in enumerate(steps):
            clock = at[n] = max(clock, at[n]) + float(step[b])
        through[b] = clock
    return through[:-1]


def link_seconds(plan: TransferPlan, topology: Topology) -> dict[str, Floats]:
    """How long each link is busy with all of `plan` at its full speed: for each kind of link, by GPU or node."""
    network = plan.select(plan.network)
    node = topology.node_of_rank()
    crosses = node[network.src_rank] != node[network.dst_rank]
    links = topology.links
    found: dict[str, Floats] = {}
    for name, rows, speed in (
        ("network", crosses, links.between_nodes.gb_per_s),
        ("fabric", ~crosses, links.within_node.gb_per_s),
    ):
        for way, end in (("out", network.src_rank), ("in", network.dst_rank)):
            moved = np.bincount(end[rows], weights=network.bytes[rows], minlength=topology.ranks)
            found[f"{name} {way}"] = moved / (speed * 1e9)
            if name == "network":
                of_node = moved.reshape(topology.nodes, topology.gpus_per_node).sum(axis=1)
                found[f"node {way}"] = of_node / (topology.node_gb_per_s * 1e9)
    return found


def busiest_link(plan: TransferPlan, topology: Topology) -> tuple[str, float]:
    """The name of the link that is busy longest, and for how many seconds; an empty name where nothing moves."""
    name, seconds = "", 0.0
    for kind, busy in link_seconds(plan, topology).items():
        at = int(np.argmax(busy))
        if busy[at] > seconds * (1 + 1e-9):
            what, way = kind.split()
            name = f"node {at} {way}" if what == "node" else f"GPU {at} {way} ({what})"
            seconds = float(busy[at])
    return name, seconds


def _finish(
    network: TransferPlan, part: Ints, group: Ints, topology: Topology, messages: int, latencies: Floats,
    ready: Floats, after: Floats, *, barrier: bool, curved: bool = True, share: float = 1.0,
) -> Floats:  # fmt: skip
    from stages.clocks import finish_times

    links = (topology.links.within_node, topology.links.between_nodes)
    curves = [_curve(link, curved) for link in links]
    return finish_times(
        part,
        group,
        network.src_rank,
        network.dst_rank,
        network.bytes.astype(np.float64),
        float(messages),
        topology.gpus_per_node,
        np.array([link.gb_per_s * 1e9 * share for link in links]),
        latencies,
        np.cumsum([0, *(len(sizes) for sizes, _ in curves)]),
        np.concatenate([sizes for sizes, _ in curves]),
        np.concatenate([seconds for _, seconds in curves]),
        topology.node_gb_per_s * 1e9,
        ready,
        after,
        barrier,
    )


def _latencies(topology: Topology, message_us: float | None) -> Floats:
    """[2]: seconds of a message within a node and between nodes."""
    links = (topology.links.within_node, topology.links.between_nodes)
    return np.array([(link.latency_us if message_us is None else message_us) * 1e-6 for link in links])


def _curve(link: Link, curved: bool) -> tuple[Floats, Floats]:
    if not link.curve or not curved:
        return np.zeros(0), np.zeros(0)
    sizes, fractions = np.asarray(link.curve, dtype=np.float64).T
    return sizes, sizes / (link.gb_per_s * 1e9 * fractions)


def _copy_seconds(plan: TransferPlan, part: Ints, parts: int, topology: Topology, *, in_place: bool = False) -> Floats:
    """[parts, R]: copying what a part brings into the slots; `in_place`: without detours within a rank."""
    lands = plan.dst_slot >= 0
    copies = np.ones(len(plan), dtype=np.int64)
    if not in_place:
        for kind, count in COPIES.items():
            copies[plan.kind == kind] = count
    moved = _per_rank(part[lands], plan.dst_rank[lands], (plan.bytes * copies)[lands], parts, topology.ranks)
    return moved / (topology.device.copy_gb_per_s * 1e9)


def _per_rank(part: Ints, rank: Ints, nbytes: npt.NDArray[np.int64], parts: int, ranks: int) -> Floats:
    """[parts, R]"""
    summed = np.bincount(part * ranks + rank, weights=nbytes, minlength=parts * ranks)
    return summed.astype(np.float64).reshape(parts, ranks)
