"""`moesaic audit`: is a run still what it was, and do its files bear out what it says? From the store alone.

Each run of the store holds a record of all its rows and files, and the seal of that record (`pipeline.seal`). The audit
hashes every file, compares every row, derives the keys of the checkpoints anew, follows each input to the output that
it was, and lets each stage compute again what follows from its files (`stages.rederived`).
"""

from __future__ import annotations

import csv
import importlib
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

import yaml
from omegaconf import DictConfig, OmegaConf

from pipeline import comparison
from pipeline.claims import (
    inputs_that_do_not_fit,
    manifest_faults,
    manifest_of,
    metrics_text,
    misplaced,
    strangers,
    summary_faults,
)
from pipeline.code_digest import code_digest
from pipeline.declaration import StageDeclaration, StageSpec
from pipeline.evidence import Evidence, gather
from pipeline.lifecycle import alive
from pipeline.schema import CONF, check, stage_config
from pipeline.seal import REMOVED, SEAL_TAG
from pipeline.store import GONE, TAG, Store
from stages import paths
from stages.errors import BadInput, MoesaicError, sentence_of
from stages.temporary import temporary_folder

if TYPE_CHECKING:
    from mlflow.entities import Run

    from stages.rederived import RederiveFunction


KINDS = ("run", "stage", "sweep")


@dataclass
class Part:
    """What was looked at of a run, a sentence each: `done`, `findings` (tampering, or a claim that its files do not bear
    out) and `remarks` that a reader should know."""

    name: str
    run_id: str
    state: str
    done: list[str] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


@dataclass
class Report:
    run_id: str
    name: str
    seal: str | None
    parts: list[Part] = field(default_factory=list)

    @property
    def findings(self) -> list[str]:
        return [f"{part.name} ({part.run_id[:8]}): {text}." for part in self.parts for text in part.findings]


def audit(store: Store, prefix: str, sealed: str | None = None) -> Report:
    """Of a run, or of a sweep with all its points. `sealed`: the seal as it was noted elsewhere, or its beginning."""
    run = store.find(prefix)
    kind, seal = run.data.tags.get(f"{TAG}kind"), run.data.tags.get(SEAL_TAG)
    if kind != "sweep" and (kind in KINDS or not seal):  # one with a seal and no kind lost it to someone
        run = store.pipeline_run(run)
    if run.info.status == "RUNNING" and (not seal or alive(run)):
        raise BadInput(f"Run {run.info.run_id[:8]} still runs, or was killed and not yet noticed: audit it afterwards.")
    if run.info.status != "FINISHED" and SEAL_TAG not in run.data.tags:
        raise MoesaicError(
            f"Run {run.info.run_id[:8]} was ended before it could leave a record: nothing can be audited."
        )
    with temporary_folder("audit") as folder:
        report = Report(run.info.run_id, run.info.run_name, run.data.tags.get(SEAL_TAG))
        if run.data.tags.get(f"{TAG}kind") == "sweep":
            report.parts += _sweep(store, run, folder)
        else:
            report.parts += _Audit(store, folder).parts(run)
        if sealed is not None and (not sealed or not (report.seal or "").startswith(sealed)):
            report.parts[0].findings.append(f"its seal is {report.seal}, and not the {sealed} that you gave")
    return report


def _sweep(store: Store, run: Run, temporary: Path) -> Iterator[Part]:
    evidence = gather(store, run, temporary)
    own = Part("sweep", run.info.run_id, run.info.status.lower(), [evidence.counts()], evidence.findings)
    points = comparison.latest(comparison.points_of(store, run.info.run_id))
    compared = set[str]()
    if (table := evidence.folder / comparison.TABLE).is_file():
        with table.open(encoding="utf-8", newline="") as stream:
            compared = {row.get("run_id", "") for row in csv.DictReader(stream)}
    noted = {tag.removeprefix(REMOVED) for tag in run.data.tags if tag.startswith(REMOVED)}
    there = {point.info.run_id for point in points}  # also of those noted, where `gc` was interrupted
    removed = sorted(compared & noted - there)
    if removed:
        shown = ", ".join(run_id[:8] for run_id in removed)
        own.remarks.append(f"of the points that it compared `moesaic gc` removed {len(removed)}: {shown}")
    told = run.data.metrics.get("points")
    if told is not None and told != len(points) + len(removed):
        own.findings.append(f"it had {told:.0f} points, and {len(points)} are there")
    elif table.is_file():
        for stranger in sorted(there - compared):
            own.findings.append(f"the run {stranger[:8]} is below it, and is none of the points that it compared")
    yield own
    shared = _Audit(store, temporary)
    for point in points:
        yield from shared.parts(point)


@dataclass
class _Audit:
    """Stage runs that several points of a sweep took are looked at once (`seen`)."""

    store: Store
    temporary: Path
    seen: dict[str, tuple[Evidence, Part]] = field(default_factory=dict)

    def parts(self, run: Run) -> list[Part]:
        evidence = gather(self.store, run, self.temporary)
        state = run.info.status.lower()
        own = Part("run", run.info.run_id, state, [evidence.counts()], evidence.findings, evidence.remarks)
        specs, config = self._declared(evidence, own)
        parts, found = [own], dict[str, Evidence]()
        told = _stages_of(run, list(specs))
        for stage, state, made_by in told:
            known = made_by in self.seen
            part = self._stage(run, stage, state, made_by, own)
            if part is not None:
                found[stage] = self.seen[made_by][0]
                if not known:
                    parts.append(part)
                    if (spec := specs.get(stage)) is not None and config is not None:
                        self._rederive(spec, config, found, part)
        own.findings += inputs_that_do_not_fit(specs, found)
        own.findings += summary_faults(evidence, run, found)
        own.findings += strangers(self.store, run, {made_by for _, _, made_by in told})
        return parts

    def _declared(self, evidence: Evidence, own: Part) -> tuple[dict[str, StageSpec], DictConfig | None]:
        """The stages that the run's config declares, and this config."""
        try:
            config = OmegaConf.load(evidence.folder / paths.CONFIG)
            assert isinstance(config, DictConfig)
            return {spec.name: spec for spec in check(config)[1]}, config
        except Exception as error:  # another version's config may be wrong in any way
            own.remarks.append(f"its {paths.CONFIG} does not fit this version of moesaic: {sentence_of(error)}")
            return {}, None

    def _stage(self, run: Run, stage: str, state: str, made_by: str, own: Part) -> Part | None:
        from mlflow.exceptions import MlflowException

        if made_by not in self.seen:
            try:
                stage_run = self.store.run(made_by)
            except MlflowException as error:
                if error.error_code != GONE:
                    raise
                own.findings.append(f"the run {made_by[:8]} that its {stage} is from is gone")
                return None
            evidence = gather(self.store, stage_run, self.temporary)
            part = Part(stage, made_by, state, [evidence.counts()], evidence.findings, evidence.remarks)
            part.findings += manifest_faults(evidence, stage)
            part.findings += misplaced(self.store, stage_run)
            self.seen[made_by] = evidence, part
        evidence, part = self.seen[made_by]
        sealed = run.data.tags.get(f"{SEAL_TAG}.{stage}")
        if sealed != evidence.seal:
            own.findings.append(
                f"the seal of its {stage} was {(sealed or 'none')[:16]}…, and is {(evidence.seal or 'none')[:16]}…"
            )
        prefix = f"{stage}."
        told = {k.removeprefix(prefix): v for k, v in run.data.metrics.items() if k.startswith(prefix)}
        if metrics_text(told) != metrics_text(evidence.run.data.metrics):
            own.findings.append(f"its metrics of {stage} are not those of the {stage} run {made_by[:8]}")
        return part

    def _rederive(self, spec: StageSpec, config: DictConfig, found: dict[str, Evidence], part: Part) -> None:
        evidence, dotted = found[spec.name], _auditors().get(spec.target)
        manifest = manifest_of(evidence)
        if manifest is None or not set(spec.outputs) <= set(manifest.outputs):
            return  # it failed before it had results, or lost its manifest, which is told already
        if dotted is None:
            part.remarks.append("nothing of this version of moesaic computes its results again")
            return
        with suppress(BadInput):
            if manifest.code_digest != code_digest(spec.target):
                part.remarks.append("its code is not that of this version of moesaic")
        module, _, name = dotted.rpartition(".")
        function = cast("RederiveFunction", getattr(importlib.import_module(module), name))
        try:
            inputs = {key: found[stage].folder / file for key, (stage, file) in spec.inputs.items()}
            again = function(stage_config(config, spec), inputs, evidence.folder, evidence.run.data.metrics)
        except KeyError as error:
            part.findings.append(f"its input {error.args[0]} is not there")
        except Exception as error:  # files that were changed can break whatever reads them
            part.findings.append(f"its results cannot be computed again: {sentence_of(error).rstrip('.')}")
        else:
            part.done += again.done
            part.findings += again.wrong


def _auditors() -> dict[str, str]:
    """Target of a stage -> its audit, of the pipelines that moesaic ships. What a stored run names is never called."""
    found: dict[str, str] = {}
    for file in sorted((CONF / "pipeline").glob("*.yaml")):
        for value in yaml.safe_load(file.read_text(encoding="utf-8")).get("stages", {}).values():
            declared = StageDeclaration(**value)
            if declared.rederive is not None:
                found[declared.target] = declared.rederive
    return found


def _stages_of(run: Run, order: list[str]) -> list[tuple[str, str, str]]:
    """Name, state and stage run of each stage that has one, in `order`."""
    prefix = f"{TAG}stage."
    found = []
    for name, text in run.data.tags.items():
        state, _, made_by = text.partition(" ")
        if name.startswith(prefix) and made_by:
            found.append((name.removeprefix(prefix), state, made_by))
    return sorted(found, key=lambda each: order.index(each[0]) if each[0] in order else len(order))


def render(report: Report, *, as_json: bool) -> str:
    if as_json:
        value = {"run_id": report.run_id, "name": report.name, "seal": report.seal, "clean": not report.findings}
        parts = [vars(part) for part in report.parts]
        return json.dumps({**value, "parts": parts, "findings": report.findings}, indent=1)
    lines = [f"{report.run_id}  {report.name}"]
    for part in report.parts:
        lines.append(f"{part.name:<8} {part.state:<8} {part.run_id[:8]}  {part.done[0]}")
        lines += [f"{'':<27}{text}" for text in part.done[1:]]
        lines += [f"{'':<27}note: {text}" for text in part.remarks]
        lines += [f"{'':<27}WRONG: {text}" for text in part.findings]
    if not report.findings:
        lines.append(f"Clean: every row and file is what the run left, and bears out what it says. Seal {report.seal}")
    return "\n".join(lines)


class Tampered(MoesaicError):
    """Something is not what a run left."""

    exit_code = 3
