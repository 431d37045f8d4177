"""Cuts a plan into batches that fit a rank's staging memory, so that no slot is overwritten before its old content
has been read, however often and by whomever.

A network row is *staged* in one batch (sent, received, checked) and *committed* (copied into its slot) in the same or
a later one; rows within a rank need no staging and go with the commit that overwrites their source. A slot read by a
row is overwritten in no batch before the one that stages that row. Since each row reads one slot, the rows of a layer
form chains, and cycles, in which each row waits for the one that reads its slot. Chains are cut anywhere. A cycle
that does not fit one batch is opened at one row, which is staged first, waits in staging (it is *parked*) and is
committed last. Rows are staged on each rank in one global order in which every row comes after those it waits for, and
cycles lie one behind the other: so at most one row that has to wait can keep a rank from going on, and two rows of
staging are enough for any plan. No rank parks experts in all of its rows: one is free after every batch, through which
a parked expert can go elsewhere when the update has to stop.

Hops that forward what an earlier hop brought form a tree, which is staged in one batch, `phase` by phase.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields

import numpy as np

from stages.batches_compiled import Bools, sequence_of, simulate
from stages.errors import BadInput
from stages.staging import AREAS
from stages.transfers import Ints, Kind, TransferPlan

NONE = -1
LAG = 2
"""Batches from the one that frees a row of staging to the next that uses it: one is on its way meanwhile, and another
where there is room and hops go out with it that forward what the batch before brought."""
MOST_MIXED = 8
"""Layers at once; fewer where staging is small: a cycle that is open parks an expert."""


@dataclass(frozen=True)
class Batches:
    """N rows of the plan in B batches.

    stage:  [N] the batch that sends and receives a network row; -1 for rows within a rank
    commit: [N] the batch that writes the row's slot, at least `stage`
    row:    [N] where in the receiver's staging it lands, counted in experts; -1 for rows within a rank
    phase:  [N] 0 for what leaves a slot, p + 1 for what forwards a hop of phase p
    after:  [B] the batch whose commits must be done on all ranks before this one may write into staging; -1: none
    """

    stage: Ints
    commit: Ints
    row: Ints
    phase: Ints
    after: Ints

    def __len__(self) -> int:
        return len(self.after)

    def digest(self) -> str:
        """A name for this way to cut."""
        found = hashlib.sha256()
        for column in fields(self):
            found.update(np.ascontiguousarray(getattr(self, column.name)).data)
        return found.hexdigest()


def cut(
    plan: TransferPlan, layers: int, slots: int, ranks: int, *,
    rows: int, at_once: int, at_least: int | None = None, sends_at_once: int = 0, steps: Ints | None = None,
    gpus_per_node: int | None = None,
) -> Batches:  # fmt: skip
    """Batches of `plan` (maps `[L, P]`) for ranks that can stage `rows` experts each, `at_once` of them in one batch.

    Towards the end a rank stages a quarter of what it still lacks, down to `at_least`: what is committed after the last byte
    has arrived is waited for. `sends_at_once` bounds what one rank sends out of its slots in a batch (it packs a copy); 0: no bound. While batch b is checked and
    committed, b + 1 is on its way: staging that b used is free from b + 2 on, and from b + 1 where nothing else fits.
    `steps` `[L]`, ascending: the layers of one step are done before those of the next begin.

    With `gpus_per_node` and more than two ranks layers are mixed, and a batch takes few rows of a rank over its slowest
    link, so that no rank holds up the others with many at once: in one layer some ranks send all that they hold to
    other nodes, and some nothing. Where two ranks trade, one receives what the other sends.

    Raises `BadInput` for fewer than two rows, which long cycles need, and for a hop that forwards what nobody brings.
    """
    if rows < 2 or at_once < 1:
        raise BadInput(f"Staging of {rows} experts is too small: two are the least.")
    network = np.flatnonzero(plan.network)
    parent = _parents(plan, network, ranks)
    writer = np.full((layers, slots), NONE, dtype=np.int64)
    landing = np.flatnonzero(plan.dst_slot >= 0)
    writer[plan.layer[landing], plan.dst_slot[landing]] = landing
    owner = _owners(plan, writer)

    # Everything below counts network rows from 0; `reads` is the network row that overwrites what a row reads.
    number = np.full(len(plan) + 1, NONE, dtype=np.int64)
    number[network] = np.arange(len(network))
    own_source = (parent == NONE) & (plan.src_slot[network] >= 0)
    reads = np.full(len(network), NONE, dtype=np.int64)
    overwriting = writer[plan.layer[network[own_source]], plan.src_slot[network[own_source]]]
    reads[own_source] = np.where(overwriting == NONE, NONE, number[owner[overwriting]])
    root, phase = _roots(parent)
    # A tree of hops is one unit: its rows lie together, root first, in order of phase.
    order = np.lexsort((phase, root)) if (parent != NONE).any() else np.arange(len(network))
    begin = np.append(np.flatnonzero(phase[order] == 0), len(order))
    unit_layer = plan.layer[network[order[begin[:-1]]]]
    unit_of = np.empty(len(network), dtype=np.int64)
    unit_of[order] = np.repeat(np.arange(len(begin) - 1), np.diff(begin))
    src, dst = plan.src_rank[network], plan.dst_rank[network]
    sequence = sequence_of(unit_layer, reads[order[begin[:-1]]], unit_of)
    step = np.zeros_like(unit_layer) if steps is None else steps[unit_layer]
    slow, slow_at_once = _over_the_slowest(src, dst, ranks, gpus_per_node), 0
    early = max(1, rows // 4)
    mixed = min(MOST_MIXED, rows - 3 - early)
    if mixed > 1 and slow.any():
        sequence = _mix(sequence, unit_layer, step, mixed)
        slow_at_once = _share(slow, src, dst, ranks, at_once)
    stage, commit, row, after = simulate(
        sequence, step, order, begin, reads, src, dst,
        ranks, rows, at_once, at_least or at_once, sends_at_once or len(network) + 1, slow, slow_at_once, early,
        LAG + bool(phase.any() and rows >= AREAS * at_once),
    )  # fmt: skip

    whole = Batches(
        stage=_spread(stage, network, len(plan)),
        commit=_spread(commit, network, len(plan)),
        row=_spread(row, network, len(plan)),
        phase=_spread(phase, network, len(plan)),
        after=after if len(after) or not len(plan) else np.array([NONE]),
    )
    _commit_within_ranks(whole, plan, owner, network)
    return whole


def _mix(sequence: Ints, layer: Ints, step: Ints, mixed: int) -> Ints:
    """`sequence` with so many layers of a step at once, each begun when the one so many before is through."""
    of = layer[sequence]
    count = np.bincount(of)
    first = np.cumsum(count) - count
    through = (np.arange(len(of)) - first[of]) / count[of]
    return sequence[np.lexsort((of + mixed * through, step[sequence]))]


def _over_the_slowest(src: Ints, dst: Ints, ranks: int, gpus_per_node: int | None) -> Bools:
    """[n]: the rows that cross between nodes; on one node all; none where that is not asked for, or makes no odds."""
    if gpus_per_node is None or ranks <= 2:
        return np.zeros(len(src), dtype=np.bool_)
    crosses = src // gpus_per_node != dst // gpus_per_node
    return crosses if crosses.any() else ~crosses


def _share(slow: Bools, src: Ints, dst: Ints, ranks: int, at_once: int) -> int:
    """Half the share of `slow` rows in `at_once` (of the rank that has most of them, in all that the busiest receives):
    a batch is seldom full, and as many as fill it would come to one rank where another has none."""
    most = max(int(np.bincount(end[slow], minlength=ranks).max()) for end in (src, dst))
    return -(-at_once * most // (2 * int(np.bincount(dst, minlength=ranks).max())))


def _spread(values: Ints, rows: Ints, length: int) -> Ints:
    out = np.full(length, NONE, dtype=np.int64)
    out[rows] = values
    return out


def _parents(plan: TransferPlan, network: Ints, ranks: int) -> Ints:
    """[n]: for each network row that forwards a hop, the network row (counted from 0) that brought it; else -1."""
    forwards = np.flatnonzero(plan.kind[network] == Kind.relay)
    parent = np.full(len(network), NONE, dtype=np.int64)
    if not len(forwards):
        return parent
    experts = int(plan.logical_expert.max()) + 1
    expert = (plan.layer[network] * experts + plan.logical_expert[network]) * ranks
    arrival = expert + plan.dst_rank[network]
    order = np.argsort(arrival, kind="stable")
    wanted = expert[forwards] + plan.src_rank[network[forwards]]
    at = np.minimum(np.searchsorted(arrival[order], wanted), len(order) - 1)
    missing = np.flatnonzero(arrival[order[at]] != wanted)
    if len(missing):
        row = int(network[forwards[missing[0]]])
        raise BadInput(
            f"transfers.parquet: row {row} forwards expert {plan.logical_expert[row]} of layer {plan.layer[row]} from "
            f"rank {plan.src_rank[row]}, and no row brings it there."
        )
    parent[forwards] = order[at]
    return parent


def _roots(parent: Ints) -> tuple[Ints, Ints]:
    """[n], [n]: the first hop of each row's tree, and the number of hops before it."""
    root, depth = np.arange(len(parent)), np.zeros(len(parent), dtype=np.int64)
    at = parent
    while (moving := at != NONE).any():
        if int(depth.max()) > len(parent):
            raise BadInput("transfers.parquet: hops forward an expert in a circle.")
        root = np.where(moving, at, root)
        depth += moving
        at = np.where(moving, parent[np.maximum(at, 0)], NONE)
    return root, depth


def _owners(plan: TransferPlan, writer: Ints) -> Ints:
    """[N]: the network row whose commit takes a row along: its own for a network row, that of the arrival for a free
    rider, that of whatever overwrites the source for a copy within a rank; -1 where nothing from the network does."""
    owner = np.arange(len(plan))
    local = np.flatnonzero(~plan.network)
    owner[local] = writer[plan.layer[local], plan.src_slot[local]]
    for _ in range(max(1, len(local)).bit_length() + 1):  # each round doubles how far a chain of copies is followed
        owner[local] = np.where(owner[local] == NONE, NONE, owner[owner[local]])
    circling = local[(owner[local] != NONE) & ~plan.network[owner[local]]]
    owner[circling] = NONE
    return owner


def _commit_within_ranks(batches: Batches, plan: TransferPlan, owner: Ints, network: Ints) -> None:
    """Set `commit` of the rows within ranks: with their owner, or once their whole layer has been staged."""
    local = np.flatnonzero(~plan.network)
    if not len(local):
        return
    staged = np.zeros(int(plan.layer.max()) + 1, dtype=np.int64)
    np.maximum.at(staged, plan.layer[network], batches.stage[network])
    staged = np.maximum.accumulate(staged)
    owned = owner[local]
    batches.commit[local] = np.where(owned == NONE, staged[plan.layer[local]], batches.commit[owned])


def reached(plan: TransferPlan, batches: Batches, old: np.ndarray, committed: int) -> Ints:
    """[L, P]: what each slot holds once the first `committed` batches are committed."""
    done = (batches.commit < committed) & (plan.dst_slot >= 0)
    out: Ints = old.copy()
    out[plan.layer[done], plan.dst_slot[done]] = plan.logical_expert[done]
    return out


def parked(batches: Batches, committed: int) -> Ints:
    """The rows of the plan that wait in staging at that point."""
    return np.flatnonzero((batches.stage >= 0) & (batches.stage < committed) & (batches.commit >= committed))
