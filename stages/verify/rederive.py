"""The audit of a verdict: the same comparison of the same checksums once more, with the weights made anew."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from stages import paths
from stages.checksum_table import read_checksums
from stages.contract import silent
from stages.errors import BadInput
from stages.execution import read_execution
from stages.placement import read_placement
from stages.rederived import Rederived
from stages.verdict import read_verdict, write_verdict
from stages.verify.audit import audit
from stages.verify.config import VerifyStageConfig
from stages.verify.stage import fault_of, truth_of


def rederive(
    config: VerifyStageConfig, inputs: Mapping[str, Path], folder: Path, metrics: Mapping[str, float]
) -> Rederived:
    """Weights from files are read anew where the files are still there; what was done is said either way."""
    out = Rederived(metrics)
    verdict = read_verdict(folder / paths.VERDICT)
    table, placement = read_checksums(inputs["checksums"]), read_placement(inputs["placement"])
    execution = read_execution(inputs["execution"])
    out.metrics_of({"checksums_compared": verdict.compared, "mismatches": len(verdict.mismatches)})
    out.same_files(folder, lambda target: write_verdict(target, verdict))
    if fault := fault_of(table, placement, execution):
        out.must(verdict.fault == fault, f"{paths.VERDICT} does not say that {fault[0].lower()}{fault[1:].rstrip('.')}")
        return out
    gone = False
    try:
        truth, source = truth_of(config, table, placement.experts, execution.weights, silent)
    except BadInput as error:
        gone, truth, source = True, None, f"Not compared with the source of the weights: {error}"
    again = audit(table, placement.experts, truth)
    compared = (again.slots_before + again.slots_after) * len(table.tensors)
    first = f", the first: {again.mismatches[0]}" if again.mismatches else ""
    out.must(
        not (again.mismatches and verdict.passed) if gone else again.mismatches == verdict.mismatches,
        f"{paths.VERDICT} has {len(verdict.mismatches):,} mismatches, and the checksums have "
        f"{len(again.mismatches):,}{first}",
    )
    out.must(
        gone or compared == verdict.compared,
        f"{paths.VERDICT} speaks of {verdict.compared:,} checksums, and {compared:,} can be compared",
    )
    passed = not verdict.mismatches and not verdict.fault and not verdict.functional_fault
    out.must(verdict.passed == passed, f"{paths.VERDICT} calls this {'passed' if verdict.passed else 'failed'}")
    out.done.append(f"{compared:,} checksums compared once more. {source}")
    return out
