"""One run of the store as an audit finds it: its rows and files, held against the record that the run left."""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.seal import NAME_TAG, REMOVED, RESTLESS, SEAL_TAG, Record, read_record
from pipeline.store import TAG, Store
from pipeline.writes import BIRTH, local_folder
from stages import paths
from stages.errors import MoesaicError

if TYPE_CHECKING:
    from mlflow.entities import Run

SHOWN = 60
TOLD = (TAG, "mlflow.parentRunId", "mlflow.source.", "mlflow.user")
"""Tags of which a run has those that it gave itself; others are for whoever uses the store."""


@dataclass
class Evidence:
    """`folder` holds the files of `run`; `record` is what it left, None where that is gone; `findings`: what differs;
    `remarks`: what may differ, but a reader should know."""

    run: Run
    folder: Path
    record: Record | None = None
    findings: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    @property
    def seal(self) -> str | None:
        return self.run.data.tags.get(SEAL_TAG)

    def counts(self) -> str:
        record = self.record
        if record is None:
            return "no record"
        sizes = {
            "tags": len(record.tags),
            "params": len(record.params),
            "metrics": len(record.metrics),
            "datasets": len(record.datasets),
            "files": len(record.files),
        }
        return ", ".join(f"{count} {what}" for what, count in sizes.items())


def gather(store: Store, run: Run, temporary: Path) -> Evidence:
    """All files of `run`, downloaded below `temporary` unless they are on this machine, and what is wrong with it."""
    folder = local_folder(run)
    names = store.files(run)
    if folder is None:
        folder = temporary / run.info.run_id
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            found = store.fetch(run, name, folder)
            if found is None:
                raise MoesaicError(
                    f"The file {name} of run {run.info.run_id[:8]} is listed, and the tracking store does not hand it out: "
                    "nothing is said of the run."
                )
            if found != folder / name:
                found.replace(folder / name)
    evidence = Evidence(run, folder)
    if paths.RECORD not in names or evidence.seal is None:
        evidence.findings.append(
            f"it has no {paths.RECORD if paths.RECORD not in names else 'seal'}, so nothing tells what it left"
        )
        return evidence
    if paths.sha256(folder / paths.RECORD) != evidence.seal:
        evidence.findings.append(f"{paths.RECORD} is not what the tag {SEAL_TAG} seals")
    try:
        stood_in = _stood_in(store, run, folder / paths.RECORD)
        record = read_record(folder / paths.RECORD, stood_in)
        evidence.findings += [*_row_faults(store, run, record), *_file_faults(folder, names, record, stood_in)]
        evidence.remarks += _dataset_remarks(run, record)
        evidence.record = record
    except (ValueError, TypeError, AttributeError, KeyError):
        evidence.findings.append(f"{paths.RECORD} cannot be read")
    return evidence


def _stood_in(store: Store, run: Run, file: Path) -> dict[str, str]:
    """What the record of `run` calls itself, its parent or stages beside it or below it, where the store was away when
    these began -> the ids that the store gave them."""
    from mlflow.exceptions import MlflowException

    text, tags = file.read_text(encoding="utf-8"), run.data.tags
    found = {}
    if tags.get(BIRTH) == json.loads(text)["run_id"]:
        found[tags[BIRTH]] = run.info.run_id
    others = [run]
    if parent := tags.get("mlflow.parentRunId"):
        with suppress(MlflowException):
            others.append(store.run(parent))
    prefix = f"{TAG}stage."
    stages = {v.partition(" ")[2] for other in others for n, v in other.data.tags.items() if n.startswith(prefix)}
    for known in sorted({parent or "", *stages} - {"", run.info.run_id}):
        if known not in text:
            with suppress(MlflowException):
                found[store.run(known).data.tags.get(BIRTH, known)] = known
    return found


def _row_faults(store: Store, run: Run, record: Record) -> Iterator[str]:
    if record.run_id != run.info.run_id:
        yield f"{paths.RECORD} is that of run {record.run_id}"
    if run.info.status != record.status:
        yield f"its status is {run.info.status}, and was {record.status}"
    for what, at, was in (("start", run.info.start_time, record.started), ("end", run.info.end_time, record.ended)):
        if was and at != was:
            yield f"its {what} is {_time(at)}, and was {_time(was)}"
    if run.info.run_name != record.tags.get(NAME_TAG):
        yield f"its name is {_word(run.info.run_name)}, and was {_word(record.tags.get(NAME_TAG))}"
    later = (REMOVED,) if run.data.tags.get(f"{TAG}kind") == "sweep" else ()
    tags = {
        k: v
        for k, v in run.data.tags.items()
        if k in record.tags or (k.startswith(TOLD) and k not in (SEAL_TAG, *RESTLESS) and not k.startswith(later))
    }
    yield from _differences("tag", tags, record.tags)
    yield from _differences("param", run.data.params, record.params)
    for name, text in _metric_faults(store, run, record):
        yield f"the metric {name} {text}"
    yield from _dataset_faults(run, record)


def _differences(what: str, now: Mapping[str, str], then: Mapping[str, str]) -> Iterator[str]:
    for name in sorted(now.keys() | then.keys()):
        if name not in now:
            yield f"the {what} {name} is gone; it was {_word(then[name])}"
        elif name not in then:
            yield f"the {what} {name} was added: {_word(now[name])}"
        elif now[name] != then[name]:
            yield f"the {what} {name} is {_word(now[name], then[name])}, and was {_word(then[name], now[name])}"


def _metric_faults(store: Store, run: Run, record: Record) -> Iterator[tuple[str, str]]:
    """Of the last value of each metric and of all its points, which the store keeps apart."""
    now = run.data.metrics
    for name in sorted(now.keys() | record.metrics.keys()):
        if name not in record.metrics:
            yield name, f"was added: {now[name]:g}"
            continue
        then = sorted(map(_stored, record.metrics[name]), key=_order)
        points = sorted((p.value for p in store.client.get_metric_history(run.info.run_id, name)), key=_order)
        if name not in now or not points:
            yield name, f"is gone; it was {then[-1]:.10g}"
        elif not any(_same(now[name], value) for value in then):
            yield name, f"is {now[name]:.10g}, and was {then[-1]:.10g}"
        elif len(points) != len(then) or not all(map(_same, points, then)):
            yield name, f"has other points than it had ({len(points)} now, {len(then)} then)"


def _dataset_faults(run: Run, record: Record) -> Iterator[str]:
    """By name, content and what each is to the run. Where it came from is not compared: the store keeps one data set of
    a name and digest, with the source that some run was first to name."""
    now = []
    for item in run.inputs.dataset_inputs if run.inputs is not None else ():
        context = {tag.key: tag.value for tag in item.tags}.get("mlflow.data.context", "")
        sha256 = json.loads(item.dataset.source)["sha256"]
        now.append((item.dataset.name, sha256, context))
        if not sha256.startswith(item.dataset.digest):
            yield f"the digest of the dataset {item.dataset.name} is {item.dataset.digest}, and was {sha256}"
    then = [(d["name"], d["sha256"], d["context"]) for d in record.datasets]
    for name in sorted({each[0] for each in set(now) ^ set(then)}):
        yield f"the dataset {name} is not the one that it was given"


def _file_faults(folder: Path, names: list[str], record: Record, stood_in: Mapping[str, str]) -> Iterator[str]:
    for name in sorted({*names, *record.files} - {paths.RECORD}):
        if name not in names:
            yield f"the file {name} is gone"
        elif name not in record.files:
            yield f"the file {name} was added"
        elif (digest := _as_it_was(folder / name, stood_in)) != record.files[name]:
            yield f"the file {name} was changed: its SHA-256 is {digest[:16]}…, and was {record.files[name][:16]}…"


def _as_it_was(file: Path, stood_in: Mapping[str, str]) -> str:
    """The SHA-256 of a file; of a summary or report, before it was told the ids that the store gave (`outbox`)."""
    if file.name not in (paths.SUMMARY, paths.REPORT) or not stood_in:
        return paths.sha256(file)
    text = file.read_text(encoding="utf-8")
    for stand_in, real in stood_in.items():
        text = text.replace(real, stand_in).replace(f"[{real[:8]}]", f"[{stand_in[:8]}]")
    return hashlib.sha256(text.encode()).hexdigest()


def _dataset_remarks(run: Run, record: Record) -> Iterator[str]:
    """Where the store says that a data set came from and what it holds, if the run says otherwise: see
    `_dataset_faults`."""
    came = {(each["name"], each["sha256"]): each for each in record.datasets}
    for item in run.inputs.dataset_inputs if run.inputs is not None else ():
        source = json.loads(item.dataset.source)
        then = came.get((item.dataset.name, source["sha256"]))
        if then is not None and source["uri"] != then["source"]:
            yield (
                f"the store says that the dataset {item.dataset.name} came from {source['uri']}, as some run was first to "
                f"say; this one read the same content from {then['source']}"
            )
        if then is not None and (profile := json.loads(item.dataset.profile or "{}")) != then["profile"]:
            yield (
                f"the store says that the dataset {item.dataset.name} is {json.dumps(profile)}, as some run was first to say; "
                f"this one says {json.dumps(then['profile'])}"
            )


def _time(milliseconds: int | None) -> str:
    if milliseconds is None:
        return "not there"
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds")


def _stored(value: float) -> float:
    """What MLflow's stores make of a number."""
    return max(-sys.float_info.max, min(sys.float_info.max, value)) if math.isinf(value) else value


def _order(value: float) -> tuple[bool, float]:
    return math.isnan(value), value


def _same(a: float, b: float) -> bool:
    return a == b or (math.isnan(a) and math.isnan(b))


def _word(value: str | None, other: str | None = None) -> str:
    """`value` in a few words: where it differs from `other`."""
    text = repr(value)
    if len(text) <= SHOWN:
        return text
    at = next((n for n, (a, b) in enumerate(zip(value or "", other or "", strict=False)) if a != b), 0)
    start = max(0, at - SHOWN // 3)
    return repr(("…" if start else "") + (value or "")[start : start + SHOWN] + "…")
