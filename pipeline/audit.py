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
from typing import TYPE_CHECKING, Any, cast

import yaml
from omegaconf import DictConfig, OmegaConf

from pipeline import comparison
from pipeline.code_digest import code_digest
from pipeline.declaration import StageDeclaration, StageSpec
from pipeline.evidence import Evidence, gather
from pipeline.keys import Manifest, read_manifest
from pipeline.lifecycle import alive
from pipeline.schema import CONF, check, stage_config
from pipeline.seal import SEAL_TAG
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
    told = run.data.metrics.get("points")
    if told is not None and told != len(points):
        own.findings.append(f"it had {told:.0f} points, and {len(points)} are there")
    elif (table := evidence.folder / comparison.TABLE).is_file():
        with table.open(encoding="utf-8", newline="") as stream:
            compared = {row.get("run_id", "") for row in csv.DictReader(stream)}
        for stranger in sorted({point.info.run_id for point in points} - compared):
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
        own.findings += _inputs_that_do_not_fit(specs, found)
        own.findings += _summary_faults(evidence, run, found)
        own.findings += _strangers(self.store, run, {made_by for _, _, made_by in told})
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
            part.findings += _manifest_faults(evidence, stage)
            part.findings += _misplaced(self.store, stage_run)
            self.seen[made_by] = evidence, part
        evidence, part = self.seen[made_by]
        sealed = run.data.tags.get(f"{SEAL_TAG}.{stage}")
        if sealed != evidence.seal:
            own.findings.append(
                f"the seal of its {stage} was {(sealed or 'none')[:16]}…, and is {(evidence.seal or 'none')[:16]}…"
            )
        prefix = f"{stage}."
        told = {k.removeprefix(prefix): v for k, v in run.data.metrics.items() if k.startswith(prefix)}
        if _text(told) != _text(evidence.run.data.metrics):
            own.findings.append(f"its metrics of {stage} are not those of the {stage} run {made_by[:8]}")
        return part

    def _rederive(self, spec: StageSpec, config: DictConfig, found: dict[str, Evidence], part: Part) -> None:
        evidence, dotted = found[spec.name], _auditors().get(spec.target)
        manifest = _manifest(evidence)
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


def _manifest(evidence: Evidence) -> Manifest | None:
    try:
        return read_manifest(evidence.folder / paths.MANIFEST)
    except (OSError, ValueError, TypeError):
        return None


def _manifest_faults(evidence: Evidence, stage: str) -> Iterator[str]:
    manifest, tags = _manifest(evidence), evidence.run.data.tags
    if manifest is None:
        if evidence.run.info.status == "FINISHED":
            yield f"{paths.MANIFEST} is gone or cannot be read"
        return
    if manifest.stage != stage:
        yield f"{paths.MANIFEST} is that of a {manifest.stage} stage"
    if manifest.parts().key != manifest.key:
        yield f"the key in {paths.MANIFEST} is not the one that its code, config, inputs and environment give"
    if manifest.key != tags.get(f"{TAG}key"):
        yield f"the key in {paths.MANIFEST} is not that of the tag {TAG}key"
    for name, digest in manifest.outputs.items():
        file = evidence.folder / name
        if file.is_file() and paths.sha256(file) != digest:
            yield f"{name} is not the output that {paths.MANIFEST} names"


def _inputs_that_do_not_fit(specs: dict[str, StageSpec], found: dict[str, Evidence]) -> Iterator[str]:
    for name, evidence in found.items():
        manifest, spec = _manifest(evidence), specs.get(name)
        if manifest is None or spec is None:
            continue
        for key, (origin, file) in spec.inputs.items():
            made = _manifest(found[origin]) if origin in found else None
            if made is not None and manifest.inputs.get(key) != made.outputs.get(file):
                yield f"the {key} that its {name} worked on is not the {file} that its {origin} made"


def _summary_faults(evidence: Evidence, run: Run, found: dict[str, Evidence]) -> Iterator[str]:
    try:
        summary: dict[str, Any] = json.loads((evidence.folder / paths.SUMMARY).read_text(encoding="utf-8"))
        stages, tags = summary["stages"], run.data.tags
        if (summary["run_id"], summary["status"]) != (run.info.run_id, tags.get(f"{TAG}outcome")):
            yield f"{paths.SUMMARY} is not of this run, or tells another outcome"
        for name, state in stages.items():
            text = f"{state['state']} {state['run_id'] or ''}".strip()
            if text != tags.get(f"{TAG}stage.{name}"):
                yield f"{paths.SUMMARY} says {text} of {name}, and the tag {TAG}stage.{name} something else"
            if name in found and _text(state["metrics"]) != _text(found[name].run.data.metrics):
                yield f"{paths.SUMMARY} has other metrics of {name} than its run"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        yield f"{paths.SUMMARY} is gone or cannot be read"


def _misplaced(store: Store, run: Run) -> Iterator[str]:
    if run.info.lifecycle_stage != "active":
        yield "it was deleted in MLflow, so that nobody sees it there"
    if run.info.experiment_id != store.experiment_id:
        yield f"it was put into the experiment {run.info.experiment_id}"


def _strangers(store: Store, run: Run, known: set[str]) -> Iterator[str]:
    """Stage runs that someone put below a run which came to its end."""
    if run.info.status != "FINISHED":  # one that was interrupted may not have heard of its last stage
        return
    for child in store.search(f"tags.`mlflow.parentRunId` = '{run.info.run_id}'", limit=1000):
        if child.info.run_id not in known:
            yield f"the run {child.info.run_id[:8]} ({child.info.run_name}) is below it, and is none of its stages"


def _text(metrics: dict[str, float]) -> str:
    return json.dumps({name: float(value) for name, value in metrics.items()}, sort_keys=True)  # in which NaN is NaN


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
