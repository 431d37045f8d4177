"""`report.html`: one file that tells what a run was asked and what it found, made from what the run left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from pipeline import facts
from pipeline.summary import Summary
from stages import paths
from stages.errors import sentence_of


def leave_report(
    directory: Path, summary: Summary, config: DictConfig, overrides: Sequence[str], say: Callable[[str], None]
) -> None:
    """`write_report`, with a word to `say` where it cannot be: a run is what its stages left, and no fault of the report
    ends it."""
    (directory / paths.REPORT).unlink(missing_ok=True)  # it would show an earlier run, should this one have none
    try:
        write_report(directory, summary, config, overrides)
    except Exception as error:
        say(f"There is no {paths.REPORT} of this run: {sentence_of(error)}")


def write_report(directory: Path, summary: Summary, config: DictConfig, overrides: Sequence[str]) -> Path:
    """Of the run in `directory`, whichever of its stages there are. The path of the file."""
    from pipeline.report.material import Origin, gather
    from pipeline.report.page import page

    file = directory / paths.REPORT
    shown = OmegaConf.masked_copy(config, [str(name) for name in config if name not in ("pipeline", "hydra")])
    plain = OmegaConf.to_container(shown, resolve=True)
    assert isinstance(plain, dict)
    origin = Origin(
        asked={str(name): value for name, value in plain.items()},
        overrides=tuple(overrides),
        config=OmegaConf.to_yaml(shown, resolve=True),
        machine=facts.machine_facts(),
        git=facts.git_facts(),
        written=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    )
    paths.write_text(file, page(gather(directory, summary, origin)))
    return file
