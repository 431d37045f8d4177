"""Runs a declared pipeline: stage by stage, from checkpoints where there are some, recorded in the tracking store."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from pipeline import facts, record, sync
from pipeline.addresses import options_for
from pipeline.checkpoint import Hit, Miss, look_up
from pipeline.declaration import RunOptions, StageSpec, needed, selection
from pipeline.folder import check_target, ours, owned
from pipeline.keys import KeyParts, Manifest, cacheable, environment, key_parts, write_manifest
from pipeline.lifecycle import Terminated, birth_tags, cause_of, ending_raises, heartbeat, signals_held
from pipeline.orphans import reap_orphans
from pipeline.outbox import is_outage, suppress_outage
from pipeline.points import Point, identity
from pipeline.progress.telling import Telling, forget, noted
from pipeline.progress.view import Lines, View
from pipeline.report import leave_report
from pipeline.schema import Root, check, resolved, stage_config, tracking_options
from pipeline.seal import SealedStore
from pipeline.store import open_store, remove
from pipeline.summary import StageState, Summary, write_summary
from stages import paths
from stages.contract import StageResult
from stages.errors import BadInput, MoesaicError

INTERRUPTS = (KeyboardInterrupt, Terminated, SystemExit)


@dataclass
class Request:
    """What to run and where. `view` is told how it goes; `overrides` are kept for the record; `point`: of a sweep, if
    it is one."""

    config: DictConfig
    directory: Path
    overrides: list[str] = field(default_factory=list)
    view: View = field(default_factory=lambda: Lines(print))
    point: Point | None = None

    def store(self, root: Root) -> SealedStore:
        """Where the run is recorded; a point can do without it, since the sweep knows the experiment."""
        return open_store(root.tracking, self.point.experiment_id if self.point else None, SealedStore)


def run_pipeline(request: Request) -> Summary:
    """Run what the config asks for and leave `summary.json` in the directory. Raises what ended it, with the summary
    written and the tracking run closed."""
    try:
        root, specs = check(request.config)
        first, last = selection(specs, root.run)
        configs = {spec.name: stage_config(request.config, spec) for spec in specs[: last + 1]}
        for spec in specs[first : last + 1]:
            environment(configs[spec.name])  # what this machine cannot run is said before anything runs
            check_target(request.directory / spec.name)
    except BadInput as error:
        _refuse(request, error)
        raise
    store = request.store(root)
    if request.point is None:  # of a sweep, its own run does
        with suppress_outage():
            reap_orphans(store)
    summary = Summary(run_id=None, options=options_for(store.uri, store.experiment))
    with owned(request.directory, patient=request.point is not None):
        store = store.kept_in(request.directory, request.view.remark)
        sync.deliver_before(store, request.directory)
        walk = _Walk(request, store, specs, configs, root.run, summary)
        if root.run.dry_run:
            walk.go(first, last)
            summary.conclude(dry_run=True)
            write_summary(request.directory, summary)
            return summary
        if request.point:
            walk.identity = identity(specs[first : last + 1], configs)
            if before := request.point.done_before(store, request.directory, walk.identity):
                return replace(before, before=True)
        for leftover in request.directory.glob(".*.partial"):
            remove(leftover)
        try:
            with _recorded(request, store, root, summary, walk.identity):
                walk.go(first, last)
                summary.conclude(dry_run=False)
        finally:
            forget(request.directory)
    return summary


def _refuse(request: Request, error: BadInput) -> None:
    """Leave the reason why a config cannot be run: in the folder, unless it shows a run already, and in the store if
    this is a point of a sweep."""
    request.directory.mkdir(parents=True, exist_ok=True)
    summary = Summary(run_id=None, cause=str(error))
    if not (request.directory / paths.SUMMARY).exists():
        write_summary(request.directory, summary)
    if not request.point:
        return
    root = Root(tracking=tracking_options(request.config))
    store = request.store(root).kept_in(request.directory, request.view.remark)
    with suppress(BadInput), _recorded(request, store, root, summary):
        raise error


@contextmanager
def _recorded(request: Request, store: SealedStore, root: Root, summary: Summary, identity: str = "") -> Iterator[None]:
    """The tracking run around the block: whatever happens inside, it gets its summary, status, cause and note."""
    beat, parent = root.tracking.heartbeat_seconds, request.point.parent if request.point else None
    tags = {"kind": "run", "directory": str(request.directory.absolute()), **birth_tags(beat)}
    if request.point:
        tags |= {**request.point.tags(), "identity": identity}
    with ending_raises():
        summary.run_id = run_id = record.start_run(store, request.config, request.overrides, tags, parent)
        status, exit_code = "FINISHED", 0
        with heartbeat(store, run_id, beat, lambda: noted(request.directory)):
            try:
                yield
            except BaseException as error:
                status = "KILLED" if isinstance(error, INTERRUPTS) else "FAILED"
                summary.status = "failed"
                summary.cause = cause_of(error)
                exit_code = getattr(error, "exit_code", 1)
                raise
            finally:
                with signals_held():
                    write_summary(request.directory, summary)
                    if exit_code:
                        store.tag(run_id, {"exit_code": str(exit_code)})
                    leave_report(request.directory, summary, request.config, request.overrides, request.view.remark)
                    record.finish_run(store, summary, request.directory, request.overrides, status)
                    sync.say_what_waits(store, request.directory, request.view.remark)


@dataclass
class _Walk:
    """One pass over the stages. `manifests` holds what each stage left, by name, as far as it is known."""

    request: Request
    store: SealedStore
    specs: list[StageSpec]
    configs: dict[str, Any]
    run: RunOptions
    summary: Summary
    manifests: dict[str, Manifest] = field(default_factory=dict)
    identity: str = ""

    def go(self, first: int, last: int) -> None:
        before = needed(self.specs, first, last)
        self.request.view.begins([spec.name for spec in self.specs[: last + 1]])
        for index, spec in enumerate(self.specs):
            if first <= index <= last or spec.name in before:
                self._stage(spec, asked=index >= first)
            else:
                self.summary.stages[spec.name] = StageState("skipped", "not asked for")
                if not self.run.dry_run and ours(stale := self.request.directory / spec.name):
                    remove(stale)  # it shows what another config made

    def _stage(self, spec: StageSpec, *, asked: bool) -> None:
        unknown = [stage for stage, _ in spec.inputs.values() if stage not in self.manifests]
        if unknown:  # only a dry run gets here: what comes before would run
            self._note(spec, StageState("skipped", f"would run: waits for {', '.join(dict.fromkeys(unknown))}"))
            return
        try:
            self._decide(spec, asked=asked)
        except BaseException:
            if spec.name not in self.summary.stages:  # refused before it could run
                self.summary.stages[spec.name] = StageState("failed", "refused")
            for later in self.specs[self.specs.index(spec) + 1 :]:
                self.summary.stages.setdefault(later.name, StageState("skipped", f"not reached: {spec.name} failed"))
            raise

    def _decide(self, spec: StageSpec, *, asked: bool) -> None:
        config = self.configs[spec.name]
        digests = {name: self.manifests[stage].outputs[file] for name, (stage, file) in spec.inputs.items()}
        parts = key_parts(spec, config, digests)
        with self._alone_with(spec, parts, config):
            self._carry_out(spec, config, parts, asked=asked)

    def _alone_with(self, spec: StageSpec, parts: KeyParts, config: Any) -> AbstractContextManager[None]:
        """What points of a sweep share is made by one of them; the others wait, and find its checkpoint."""
        point, view = self.request.point, self.request.view
        if point is None or self.run.dry_run or spec.name in self.run.force or not cacheable(config):
            return nullcontext()
        return point.alone_with(parts.key, lambda: view.waits(spec.name, "another point of the sweep makes it"))

    def _carry_out(self, spec: StageSpec, config: Any, parts: KeyParts, *, asked: bool) -> None:
        found = self._checkpoint(spec, parts, config)
        if isinstance(found, Hit):
            self.manifests[spec.name] = found.manifest
            state = StageState("cached", f"run {found.run_id[:8]}", 0.0, found.run_id, parts.key, found.metrics)
            record.shows(self.store, self.summary.run_id, spec.name, state)
            self._note(spec, state)
        elif not asked:
            raise MoesaicError(
                f"run.first or run.only leaves out {spec.name}, whose output is needed, and there is no finished "
                f"{spec.name} run to take it from ({found.why}): run without it once."
            )
        elif self.run.dry_run:
            self._note(spec, StageState("skipped", f"would run: {found.why}", key=parts.key))
        else:
            self._run(spec, config, parts, found.why)

    def _checkpoint(self, spec: StageSpec, parts: KeyParts, config: Any) -> Hit | Miss:
        if spec.name in self.run.force:
            return Miss("forced")
        if not cacheable(config):
            return Miss("never cached with this config")
        target = self.request.directory / spec.name
        if self.run.dry_run:
            target = self.request.directory / f".{spec.name}.partial"
        try:
            return look_up(self.store, parts, target)
        except Exception as error:
            if not is_outage(error):
                raise
            return Miss("the tracking store is away")
        finally:
            if self.run.dry_run:
                remove(target)

    def _run(self, spec: StageSpec, config: Any, parts: KeyParts, why: str) -> None:
        assert self.summary.run_id is not None
        self.request.view.stage(spec.name, "runs", why)
        state = StageState("failed", why, key=parts.key)
        self.summary.stages[spec.name] = state
        partial = self.request.directory / f".{spec.name}.partial"
        partial.mkdir(parents=True)
        began = time.perf_counter()
        started = datetime.now(UTC).isoformat(timespec="seconds")
        of = record.run_name(self.request.config, self.request.overrides)
        lineage = record.lineage(spec, parts, self.summary)
        with record.stage_run(self.store, self.summary.run_id, of, spec, parts, why, lineage) as stage:
            state.run_id = stage.run_id
            inputs = {name: self.request.directory / origin / file for name, (origin, file) in spec.inputs.items()}
            try:
                told = Telling(spec.name, self.request.view, self.request.directory)
                result = spec.function()(config, inputs, partial, told)
            except MoesaicError as error:
                state.seconds = time.perf_counter() - began
                if error.result is not None:
                    state.metrics = dict(error.result.metrics)
                    files = set(error.result.files)
                    self._keep(partial, spec, stage, parts, error.result, files, started, state.seconds)
                raise
            state.seconds = time.perf_counter() - began
            state.metrics = dict(result.metrics)
            files = {*spec.outputs, *result.files}
            self.manifests[spec.name] = self._keep(partial, spec, stage, parts, result, files, started, state.seconds)
        state.state = "ran"
        self.request.view.ended(spec.name, state)

    def _keep(
        self,
        partial: Path,
        spec: StageSpec,
        stage: record.StageRecord,
        parts: KeyParts,
        result: StageResult,
        files: set[str],
        started: str,
        seconds: float,
    ) -> Manifest:
        """Move the working folder, with `files` in it, to its place, with a manifest, and upload it."""
        missing = [file for file in files if not (partial / file).is_file()]
        if missing:
            raise MoesaicError(f"The stage {spec.name} did not write {', '.join(sorted(missing))}.")
        outputs = {file: paths.sha256(partial / file) for file in sorted(files)}
        manifest = Manifest(
            stage=spec.name,
            key=parts.key,
            code_digest=parts.code_digest,
            config=parts.config,
            inputs=parts.inputs,
            outputs=outputs,
            environment=parts.environment,
            git=facts.git_facts(),
            started=started,
            seconds=round(seconds, 3),
        )
        write_manifest(partial, manifest)
        groups = OmegaConf.create(resolved(self.request.config, spec.groups))
        paths.write_text(partial / paths.CONFIG, OmegaConf.to_yaml(groups))
        record.save_figures(partial, result.figures)
        target = self.request.directory / spec.name
        remove(target)
        partial.rename(target)
        stage.keep(target, result)
        return manifest

    def _note(self, spec: StageSpec, state: StageState) -> None:
        self.summary.stages[spec.name] = state
        word = "runs" if state.state == "skipped" else state.state
        self.request.view.stage(spec.name, word, state.why.removeprefix("would run: "))
