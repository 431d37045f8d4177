"""What an executor will need for a plan: the batches that it makes, on the links of a topology."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stages.batches import cut
from stages.cost import Prediction, predict_pipelined, predict_reference
from stages.staging import Layout, budget
from stages.topology import Topology
from stages.transfers import TransferPlan


def predict(
    plan: TransferPlan,
    layers: int,
    slots: int,
    topology: Topology,
    tensors: Sequence[int],
    *,
    executor: str,
    one_group: bool,
    staging_mib: float,
    packs: bool = True,
    layers_per_step: int | None = None,
    checked: bool = True,
) -> Prediction:
    """Of carrying out `plan` (maps `[L, P]`), where the tensors of an expert have so many bytes each.

    `one_group`: the reference executor sends all of a layer at once, as `direct` has it; `packs`, `staging_mib`,
    `layers_per_step`, `checked`: how the pipelined one spends its staging, how many layers it has in hand, and whether
    it hashes what arrives. Raises `BadInput`
    where two experts do not fit its staging.
    """
    if executor == "reference":
        return predict_reference(plan, topology, layers, len(tensors), one_group=one_group)
    if not len(plan):
        return predict_pipelined(plan, plan.layer, plan.round, plan.layer, topology, len(tensors), checked=checked)
    most = max(1, int(np.bincount(plan.dst_rank[plan.network], minlength=1).max()))
    spent = budget(Layout.of(tensors), staging_mib, packs=packs, most=most)
    batches = cut(
        plan, layers, slots, topology.ranks, rows=spent.rows, at_once=spent.at_once, at_least=spent.at_least,
        sends_at_once=spent.sends_at_once, steps=np.arange(layers) // (layers_per_step or layers),
        gpus_per_node=topology.gpus_per_node,
    )  # fmt: skip
    batch = np.where(batches.stage >= 0, batches.stage, np.maximum(batches.commit, 0))
    phase = np.maximum(batches.phase, 0)
    return predict_pipelined(plan, batch, phase, batches.after, topology, len(tensors), checked=checked)
