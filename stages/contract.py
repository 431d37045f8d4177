"""The stage contract: what `pipeline` hands to a stage and what it gets back.

A stage is a function

    def stage(config: SomeDataclass, inputs: Mapping[str, Path], folder: Path, progress: Progress) -> StageResult

that reads its config and input files, writes its output files into `folder`, and returns what is worth recording.
It knows nothing of Hydra or MLflow. The type of `config` is a dataclass whose fields are named like the config
groups it needs. That dataclass may define

    key_config(self) -> Mapping      what of it can change the result (default: all of it)
    external_files(self) -> Mapping  name -> file or folder it reads besides its inputs (keyed by content), or a
                                     `Content` where not all of it counts
    environment(self) -> Mapping     name -> what of this machine can change the result (backend, device, versions)
    cacheable(self) -> bool          False: never skipped

and importing its module must stay cheap (no torch, pandas or matplotlib at the top level).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Count:
    """`done` of `total` of what `unit` names in the plural: batches, layers, windows, tokens, bytes."""

    unit: str
    done: float
    total: float


class Progress(Protocol):
    """How a stage says how far it is; how that is shown, and rates and the time left, are not its business."""

    def __call__(self, message: str, fraction: float, *counts: Count) -> None:
        """`message`: what is being done, the same words as long as it is the same thing. `fraction` of the whole stage
        that is done, 0 to 1. `counts`: what is counted while this is being done."""


def silent(message: str, fraction: float, *counts: Count) -> None:
    """A `Progress` that says nothing."""


class Content(Protocol):
    """What counts of a stage's external files."""

    def sha256(self) -> str: ...


@dataclass(frozen=True)
class Dataset:
    """An external input, for the record: what it is, where it came from, and the SHA-256 of its content. `profile`: what
    is true of it whatever a run takes of it."""

    name: str
    source: str
    sha256: str
    profile: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class StageResult:
    """What a stage reports besides the files it wrote.

    files:    artifact files, relative to the working folder; the declared outputs must be among them
    metrics:  public names (design) -> numbers
    figures:  name without ending -> matplotlib figure
    tags:     short facts to search runs by
    note:     Markdown that tells a reader of the tracking UI what happened
    datasets: external inputs
    """

    files: tuple[str, ...]
    metrics: Mapping[str, float] = field(default_factory=dict)
    figures: Mapping[str, Figure] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    note: str = ""
    datasets: tuple[Dataset, ...] = ()


StageFunction = Callable[[object, Mapping[str, Path], Path, Progress], StageResult]
