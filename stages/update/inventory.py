"""What every slot holds after an update that failed: from the journals of its ranks, or from what they still found."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stages.expert_map import EMPTY, ExpertMap
from stages.holdings import Holdings
from stages.update.config import UpdateStageConfig
from stages.update.job import Job
from stages.update.journal import committed_batches, journal_file
from stages.update.measured import Measured
from stages.update.truth import agreed_truth


def by_journals(config: UpdateStageConfig, job: Job, transport: str, lost: Sequence[int]) -> Holdings | None:
    """What the journals say, without the slots of the ranks `lost`; None where no journal is kept.

    A rank whose journal cannot be seen may hold what it held at first, or, on another host, anything.
    """
    from stages.batches import reached
    from stages.update.pipelined import batches_of, steps_of

    spent = config.staging_budget(transport, job.most_arrivals())
    batches = batches_of(job, spent, steps_of(job.layers, config.update.layers_per_step), config.topology.gpus_per_node)
    folder = config.journal_folder(job.digest(spent, batches.digest()))
    if folder is None:
        return None
    committed = [committed_batches(journal_file(folder, rank), len(batches)) for rank in range(job.ranks)]
    held = np.full_like(job.old, EMPTY)
    nothing_moved = not any(committed)
    for rank, count in enumerate(committed):
        if rank not in lost and (count is not None or nothing_moved):
            own = slice(rank * job.slots_per_rank, (rank + 1) * job.slots_per_rank)
            held[:, own] = reached(job.plan, batches, job.old, count or 0)[:, own]
    return Holdings(
        batches=len(batches),
        committed=committed,
        lost_ranks=sorted(lost),
        nowhere=nowhere(job, held),
        physical_to_logical_map=held.tolist(),
    )


def by_findings(config: UpdateStageConfig, job: Job, measured: Measured) -> Holdings:
    """What the ranks held when they had stopped cleanly, and whether their checksums say the same."""
    names = [tensor.name for tensor in config.model.tensors]
    truth = agreed_truth(measured.before, job.old, job.experts, names, job.ranks)
    layer, slot = np.nonzero(measured.held != EMPTY)
    expected = truth[layer, measured.held[layer, slot]]
    wrong = np.argwhere(measured.after[layer, slot] != expected)
    _, committed, batches, _ = measured.steps.tolist()
    return Holdings(
        batches=batches,
        committed=[committed] * job.ranks,
        lost_ranks=[],
        nowhere=nowhere(job, measured.held),
        physical_to_logical_map=measured.held.tolist(),
        checked=expected.size,
        wrong=[[int(layer[n]), int(slot[n]), int(k)] for n, k in wrong],
    )


def nowhere(job: Job, held: ExpertMap) -> list[list[int]]:
    """Layer and expert of all that `held` `[L, P]` lacks."""
    there = np.zeros((job.layers, job.experts + 1), dtype=bool)
    there[np.arange(job.layers)[:, None], held] = True
    known = np.zeros_like(there)
    known[np.arange(job.layers)[:, None], job.old] = True
    return np.argwhere(known[:, :-1] & ~there[:, :-1]).tolist()


def told(holdings: Holdings, slots_per_rank: int) -> str:
    """What is lost and how far the update has come, for the end of a sentence."""
    parts = []
    if holdings.lost_ranks:
        slots = [_slots(rank, slots_per_rank) for rank in holdings.lost_ranks]
        plural = len(slots) > 1 or slots_per_rank > 1
        parts.append(
            f"slot{'s' * plural} {' and '.join(slots)} of each layer {'are' if plural else 'is'} lost with "
            f"{'it' if len(slots) == 1 else 'them'}"
        )
    seen = [count for count in holdings.committed if count is not None]
    if not any(seen):
        return "; ".join([*parts, "nothing was moved"])
    parts.append(f"{min(seen)} of {holdings.batches} batches are committed on all ranks")
    if unseen := [str(rank) for rank, count in enumerate(holdings.committed) if count is None]:
        parts[-1] += f" whose journals can be seen from here (not those of rank {', '.join(unseen)})"
    return "; ".join(parts) + ": the same command goes on from there"


def doubts(holdings: Holdings) -> str:
    """What of a clean stop was not clean, for the middle of a sentence; nothing, as a rule."""
    parts = ""
    if holdings.nowhere:
        layer, expert = holdings.nowhere[0]
        more = f" and {len(holdings.nowhere) - 1} more" if len(holdings.nowhere) > 1 else ""
        parts += f"; no slot holds expert {expert} of layer {layer}{more}"
    if holdings.wrong:
        layer, slot, _ = holdings.wrong[0]
        parts += f"; slot {slot} of layer {layer} is not what it should be ({len(holdings.wrong)} wrong checksums)"
    return parts


def _slots(rank: int, slots_per_rank: int) -> str:
    first, last = rank * slots_per_rank, (rank + 1) * slots_per_rank - 1
    return f"{first}" if first == last else f"{first}-{last}"
