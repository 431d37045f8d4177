"""`summary.json`: what a pipeline run came to, for scripts and for people."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from stages import paths

VERIFY = "verify"


@dataclass
class StageState:
    """`state`: ran, cached, skipped or failed. `why` it ran, or did not. `run_id` is that of the run that made it."""

    state: str
    why: str
    seconds: float = 0.0
    run_id: str | None = None
    key: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass
class Summary:
    """`status`: verified, done, dry_run or failed; `cause`: one sentence if it failed. `before`: an earlier start of the
    sweep came to it. `options`: what `moesaic ui` and others must be given to find its store."""

    run_id: str | None
    stages: dict[str, StageState] = field(default_factory=dict)
    status: str = "failed"
    cause: str | None = None
    before: bool = False
    options: str = ""

    def conclude(self, *, dry_run: bool) -> None:
        """Set the status of a run that did all it was asked for."""
        verified = self.stages.get(VERIFY)
        if dry_run:
            self.status = "dry_run"
        else:
            self.status = "verified" if verified and verified.state in ("ran", "cached") else "done"


def write_summary(folder: Path, summary: Summary) -> Path:
    value = asdict(summary)
    del value["before"], value["options"]
    if summary.cause is None:
        del value["cause"]
    paths.write_json(folder / paths.SUMMARY, value)
    return folder / paths.SUMMARY


def read_summary(path: Path) -> Summary:
    value = json.loads(path.read_text(encoding="utf-8"))
    stages = {name: StageState(**stage) for name, stage in value.pop("stages").items()}
    return Summary(stages=stages, **value)
