"""The verify stage: is every byte where it belongs?"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from stages.checksum_table import ChecksumTable, read_checksums
from stages.contract import Progress, StageResult
from stages.errors import BadInput, Corruption
from stages.execution import Execution, read_execution
from stages.expert_map import EMPTY
from stages.functional import read_functional
from stages.placement import Placement, read_placement
from stages.verdict import Verdict, write_verdict
from stages.verify.audit import audit
from stages.verify.config import VerifyStageConfig
from stages.verify.expected import Sums
from stages.verify.outputs import Judgement, judge
from stages.verify.report import note, summary
from stages.verify.source import recompute, reread


def verify(config: VerifyStageConfig, inputs: Mapping[str, Path], folder: Path, progress: Progress) -> StageResult:
    """Audit the checksums that an update left; writes the verdict, and raises `Corruption` where it is bad.

    Metrics: `checksums_compared` counts those, before and after the update, that had something to be compared with;
    `mismatches` the wrong ones; `outputs_compared` and `outputs_different`, if asked for, count
    outputs of experts for random tokens;
    `verify_gb_per_s` is the weights that the verdict speaks for (the filled slots of the
    new map) in 10^9 bytes, over the seconds of the audit.
    """
    began = time.perf_counter()
    placement = read_placement(inputs["placement"])
    table = read_checksums(inputs["checksums"])
    execution = read_execution(inputs["execution"])
    _check_tensors(config, table, inputs["checksums"])
    functional = _functional(config, inputs, table)
    fault = fault_of(table, placement, execution)
    if fault:
        verdict = Verdict(False, 0, [], [], 0, time.perf_counter() - began, fault)
    else:
        verdict = _audit(config, table, placement, execution, functional, progress, began)
    metrics = {
        "checksums_compared": verdict.compared,
        "mismatches": len(verdict.mismatches),
        "verify_gb_per_s": verdict.nbytes / verdict.seconds / 1e9,
    }
    if config.verify.functional:
        metrics |= {"outputs_compared": functional.outputs, "outputs_different": functional.different}
    result = StageResult(
        files=write_verdict(folder, verdict),
        metrics=metrics,
        tags={"verdict": "passed" if verdict.passed else "failed"},
        note=note(verdict),
    )
    if not verdict.passed:
        raise Corruption(summary(verdict), result)
    return result


def _audit(
    config: VerifyStageConfig,
    table: ChecksumTable,
    placement: Placement,
    execution: Execution,
    functional: Judgement,
    progress: Progress,
    began: float,
) -> Verdict:
    experts = placement.experts
    truth, source = truth_of(config, table, experts, execution.weights, progress)
    progress("comparing checksums", 1.0)
    result = audit(table, experts, truth)
    slots = f"{result.slots_before:,} filled slots before the update and {result.slots_after:,} after it"
    checks = [
        "The maps that the update recorded are those of the placement.",
        f"Compared {slots}, each in {len(table.tensors)} tensors: {', '.join(table.tensors)}.",
        source,
        *filter(None, [functional.check]),
    ]
    return Verdict(
        passed=not result.mismatches and not functional.fault,
        compared=(result.slots_before + result.slots_after) * len(table.tensors),
        mismatches=result.mismatches,
        checks=checks,
        nbytes=result.slots_after * config.model.expert_bytes,
        seconds=time.perf_counter() - began,
        outputs=functional.outputs,
        functional_fault=functional.fault,
    )


def _functional(config: VerifyStageConfig, inputs: Mapping[str, Path], table: ChecksumTable) -> Judgement:
    if not config.verify.functional:
        return Judgement()
    return judge(read_functional(inputs["functional"]) if "functional" in inputs else None, table.old.shape[0])


def truth_of(
    config: VerifyStageConfig, table: ChecksumTable, experts: int, weights: str, progress: Progress
) -> tuple[Sums | None, str]:
    """[L·E, K]: the checksums of the experts that either map holds, made anew, 0 for the others; None where nothing
    makes them anew. And what was done, as a sentence."""
    not_done = "Not compared with the source of the weights: "
    if not config.verify.source:
        return None, f"{not_done}verify.source=false."
    if weights != config.verify.weights:
        return None, f"{not_done}the update has update.weights={weights}, and verify.weights={config.verify.weights}."
    layer = np.arange(table.old.shape[0])[:, None]
    used = np.unique(np.concatenate([(layer * experts + m)[m != EMPTY] for m in (table.old, table.new)]))
    which = used // experts, used % experts
    if weights == "synthetic":
        found = recompute(config.model.scaled_tensors(), config.seed, *which, progress)
        done = f"Compared with every expert made anew by the generator with seed {config.seed}."
    elif config.weight_source is not None:
        found = reread(config.weight_source, *which, progress)
        done = f"Compared with every expert read anew from {config.weight_source.title}."
    else:
        return None, f"{not_done}verify.weights_path does not say where its files are."
    out = np.zeros((table.old.shape[0] * experts, len(table.tensors)), dtype=np.uint64)
    out[used] = found
    return out, done


def _check_tensors(config: VerifyStageConfig, table: ChecksumTable, path: Path) -> None:
    names = tuple(tensor.name for tensor in config.model.tensors)
    if table.tensors != names:
        raise BadInput(f"{path} holds the tensors {', '.join(table.tensors)}; model.tensors are {', '.join(names)}.")


def fault_of(table: ChecksumTable, placement: Placement, execution: Execution) -> str:
    """Why the checksums are no answer to this placement: the update worked on other maps, or on other ranks."""
    if table.ranks != execution.ranks:
        return f"The checksums are of {table.ranks} ranks, the execution is of {execution.ranks}."
    for when, recorded, asked in (
        ("before", table.old, placement.current),
        ("after", table.new, placement.physical_to_logical_map),
    ):
        if recorded.shape != asked.shape:
            shapes = " and ".join(f"{m.shape[0]} layers of {m.shape[1]} slots" for m in (recorded, asked))
            return f"The update and the placement do not speak of the same model: they have {shapes}."
        differ = np.argwhere(recorded != asked)
        stale = when == "after" and np.array_equal(recorded, placement.current)
        if len(differ):
            layer, slot = differ[0]
            return (
                f"The map of the update is not that of the placement: {when} the update, layer {layer} slot {slot} "
                f"holds expert {recorded[layer, slot]}, and the placement says {asked[layer, slot]} "
                f"({'still the old map' if stale else f'{len(differ):,} slots differ'})."
            )
    return ""
