"""What a report is made of: the files of a run's folder, read once, whichever of them there are.

The stages are known by what they left: a section belongs to a type of artifact, not to the name of a stage.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pipeline.keys import Manifest, read_manifest
from pipeline.report.timeline import Trace, read_trace
from pipeline.summary import Summary
from stages import paths
from stages.errors import sentence_of
from stages.execution import Execution, read_execution
from stages.gpu_balance import GpuBalance, read_gpu_balance
from stages.holdings import Holdings, read_holdings
from stages.load import LoadStats, read_load
from stages.placement import Placement, read_placement
from stages.verdict import Verdict, read_verdict

T = TypeVar("T")


@dataclass(frozen=True)
class Origin:
    """Where a run came from. `config`: the whole of it as YAML; `overrides`: as they were typed; `machine`, `git`: facts
    by name; `asked`: the resolved config as plain values; `written`: when the report was."""

    asked: Mapping[str, Any]
    overrides: tuple[str, ...] = ()
    config: str = ""
    machine: Mapping[str, Any] = field(default_factory=dict)
    git: Mapping[str, Any] = field(default_factory=dict)
    written: str = ""


@dataclass(frozen=True)
class Material:
    """`manifests` and `pictures` by stage; of the rest, what the newest stage that has it left, or None. `unread`: what
    could not be read, and why."""

    summary: Summary
    origin: Origin
    manifests: Mapping[str, Manifest] = field(default_factory=dict)
    pictures: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)
    load: LoadStats | None = None
    balance: GpuBalance | None = None
    placement: Placement | None = None
    traffic: Mapping[str, Any] | None = None
    execution: Execution | None = None
    trace: Trace | None = None
    holdings: Holdings | None = None
    verdict: Verdict | None = None
    unread: tuple[str, ...] = ()

    def metric(self, name: str) -> float | None:
        """Of the stage that reports it, `place.balancedness` for example."""
        stage, _, metric = name.partition(".")
        state = self.summary.stages.get(stage)
        return state.metrics.get(metric) if state else None


def gather(directory: Path, summary: Summary, origin: Origin) -> Material:
    """Of the run in `directory`. A stage's folder counts if its manifest has the key that this run gave the stage."""
    manifests, folders = {}, {}
    unread: list[str] = []
    for name, state in summary.stages.items():
        file = directory / name / paths.MANIFEST
        if state.key is not None and file.is_file():
            manifest = read_manifest(file)
            if manifest.key == state.key:
                manifests[name], folders[name] = manifest, directory / name

    def found(file: str, read: Callable[[Path], T]) -> T | None:
        last = [name for name, folder in folders.items() if (folder / file).is_file()]
        try:
            return read(folders[last[-1]] / file) if last else None
        except Exception as error:  # a stage may use a name for something else: the rest of the report is still true
            unread.append(f"{last[-1]}/{file}: {sentence_of(error)}")
            return None

    return Material(
        summary=summary,
        origin=origin,
        manifests=manifests,
        pictures={name: tuple(sorted((f / paths.FIGURES).glob("*.png"))) for name, f in folders.items()},
        load=found(paths.LOAD, read_load),
        balance=found(paths.GPU_BALANCE, read_gpu_balance),
        placement=found(paths.PLACEMENT, read_placement),
        traffic=found(paths.TRAFFIC, lambda path: json.loads(path.read_text(encoding="utf-8"))),
        execution=found(paths.EXECUTION, read_execution),
        trace=found(paths.TRACE, read_trace),
        holdings=found(paths.JOURNAL, read_holdings),
        verdict=found(paths.VERDICT, read_verdict),
        unread=tuple(unread),
    )
