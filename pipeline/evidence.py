"""One run of the store as an audit finds it: its rows and files, held against the record that the run left."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.seal import NAME_TAG, SEAL_TAG, Record, read_record
from pipeline.store import TAG, Store, local_folder
from stages import paths

if TYPE_CHECKING:
    from mlflow.entities import Run

SHOWN = 60


@dataclass
class Evidence:
    """`folder` holds the files of `run`; `record` is what it left, None where that is gone; `findings`: what differs."""

    run: Run
    folder: Path
    record: Record | None = None
    findings: list[str] = field(default_factory=list)

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
        folder.mkdir()
        for name in names:
            store.fetch(run, name, folder)
    evidence = Evidence(run, folder)
    if paths.RECORD not in names or evidence.seal is None:
        evidence.findings.append(
            f"it has no {paths.RECORD if paths.RECORD not in names else 'seal'}, so nothing tells what it left"
        )
        return evidence
    if paths.sha256(folder / paths.RECORD) != evidence.seal:
        evidence.findings.append(f"{paths.RECORD} is not what the tag {SEAL_TAG} seals")
    try:
        record = read_record(folder / paths.RECORD)
        evidence.findings += [*_row_faults(store, run, record), *_file_faults(folder, names, record)]
        evidence.record = record
    except (ValueError, TypeError, AttributeError, KeyError):
        evidence.findings.append(f"{paths.RECORD} cannot be read")
    return evidence


def _row_faults(store: Store, run: Run, record: Record) -> Iterator[str]:
    if record.run_id != run.info.run_id:
        yield f"{paths.RECORD} is that of run {record.run_id}"
    if run.info.status != record.status:
        yield f"its status is {run.info.status}, and was {record.status}"
    if run.info.run_name != record.tags.get(NAME_TAG):
        yield f"its name is {_word(run.info.run_name)}, and was {_word(record.tags.get(NAME_TAG))}"
    tags = {k: v for k, v in run.data.tags.items() if k in record.tags or (k.startswith(TAG) and k != SEAL_TAG)}
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
    def told(name: str, sha256: str, source: str, profile: Any, context: str) -> tuple[str, str]:
        return name, json.dumps([sha256, source, profile, context], sort_keys=True)

    now = []
    for item in run.inputs.dataset_inputs if run.inputs is not None else ():
        source = json.loads(item.dataset.source)
        context = {tag.key: tag.value for tag in item.tags}.get("mlflow.data.context", "")
        profile = json.loads(item.dataset.profile or "{}")
        now.append(told(item.dataset.name, source["sha256"], source["uri"], profile, context))
        if not source["sha256"].startswith(item.dataset.digest):
            yield f"the digest of the dataset {item.dataset.name} is {item.dataset.digest}, not {source['sha256']}"
    then = [told(d["name"], d["sha256"], d["source"], d["profile"], d["context"]) for d in record.datasets]
    for name, _ in sorted(set(now) ^ set(then)):
        yield f"the dataset {name} is not the one that it was given"


def _file_faults(folder: Path, names: list[str], record: Record) -> Iterator[str]:
    for name in sorted({*names, *record.files} - {paths.RECORD}):
        if name not in names:
            yield f"the file {name} is gone"
        elif name not in record.files:
            yield f"the file {name} was added"
        elif (digest := paths.sha256(folder / name)) != record.files[name]:
            yield f"the file {name} was changed: its SHA-256 is {digest[:16]}…, and was {record.files[name][:16]}…"


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
