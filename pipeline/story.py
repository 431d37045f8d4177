"""The note of a run, for someone who was not there: what came out, what moved, verified by what, why each stage ran or
did not, from which data, config, code and machine, and how to do it again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from pipeline import facts
from pipeline.headline import headline
from pipeline.seal import Sealed
from pipeline.store import TAG, Store
from pipeline.summary import VERIFY, StageState, Summary
from stages import paths

SHOWN_DIGEST = 12
MODE = "workflowType=machine_learning"
"""Keeps MLflow's UI in the mode that shows a run's note first."""
GIST = ("Slots that change GPU", "Bytes across nodes", "Update time", "Checksums")
LOOK = {
    paths.MOVES: "which experts moved where",
    paths.TRANSFERS_PREVIEW: "every transfer",
    paths.VERDICT: "verdict",
}
RUN_NAME = f"{TAG}run"
STARTED = f"{TAG}started"


def run_note(store: Store, summary: Summary, made_by: Mapping[str, Sealed], overrides: Sequence[str]) -> str:
    """`made_by`: stage -> the sealed run that its result is from."""
    assert summary.run_id is not None
    links = Links(store.experiment_id)
    lines = [f"**{summary.status}**: {_gist(summary)}", "", " · ".join(_where_to_look(links, summary, made_by)), ""]
    lines += _answers(links, summary, made_by, overrides)
    if summary.stages:
        lines += ["", "| stage | state | why | made by |", "|---|---|---|---|"]
    for name, state in summary.stages.items():
        lines.append(
            f"| {name} | {state.state} | {_why(state)} | {_made_by(links, summary, state, made_by.get(name))} |"
        )
    return padded("\n".join(lines))


def _gist(summary: Summary) -> str:
    """The cause of a failure, else the numbers that matter most: the UI shows a few lines until it is asked for more."""
    if summary.cause:
        return summary.cause
    rows = dict(headline(summary))
    before, after = rows.get("Balancedness before"), rows.get("Balancedness after", "")
    told = [f"balancedness {before} → {after.partition('  ')[0]}" if before else ""]
    told += [f"{label[0].lower()}{label[1:]}: {rows[label].partition('  ')[0]}" for label in GIST if label in rows]
    return "; ".join(filter(None, told)) or "up to what was asked for"


def _where_to_look(links: Links, summary: Summary, made_by: Mapping[str, Sealed]) -> list[str]:
    run_id = str(summary.run_id)
    found = [links.run(run_id, "report", paths.REPORT)]
    for file, text in LOOK.items():
        of = [str(summary.stages[name].run_id) for name, sealed in made_by.items() if file in sealed.files]
        found += [links.run(of[-1], text, file)] if of else []
    return [*found, f"audit: `moesaic audit {run_id[:8]}`"]


class Links:
    """Markdown links into the UI that the note is read in."""

    def __init__(self, experiment_id: str) -> None:
        self._experiment_id = experiment_id

    def run(self, run_id: str, text: str | None = None, file: str | None = None) -> str:
        where = f"/artifacts/{file}" if file else ""
        return f"[{text or run_id[:8]}](#/experiments/{self._experiment_id}/runs/{run_id}{where}?{MODE})"


def _answers(links: Links, summary: Summary, made_by: Mapping[str, Sealed], overrides: Sequence[str]) -> list[str]:
    run_id = str(summary.run_id)
    data = [
        f"{d.name} from {d.source} (SHA-256 {d.sha256[:SHOWN_DIGEST]}…)" for s in made_by.values() for d in s.datasets
    ]
    rows = [
        ("which data", "; ".join(data)),
        ("which config", f"{_typed(overrides)}; {links.run(run_id, 'all of it', paths.CONFIG)}"),
        ("which code", _code(links, run_id)),
        ("which machine", _machine(links, run_id)),
        ("verified by", _verified(summary)),
    ]
    return [
        "| question | answer |",
        "|---|---|",
        *(f"| {question} | {answer} |" for question, answer in rows if answer),
    ]


def _typed(overrides: Sequence[str]) -> str:
    return f"`moesaic run {' '.join(overrides)}`".replace("|", "\\|") if overrides else "`moesaic run`"


def _code(links: Links, run_id: str) -> str:
    git, version = facts.git_facts(), facts.machine_facts()["packages"]["moesaic"]
    if not git:
        return f"moesaic {version}, as it was installed"
    changed = f" with {links.run(run_id, 'changes that were not committed', 'git.diff.txt')}" if git["dirty"] else ""
    return f"moesaic {version}, commit {git['commit'][:SHOWN_DIGEST]}{changed}"


def _machine(links: Links, run_id: str) -> str:
    machine: dict[str, Any] = facts.machine_facts()
    text = f"{machine['host']}, {machine['platform']}, Python {machine['python']}, torch {machine['packages']['torch']}"
    return f"{text}; {links.run(run_id, 'versions', 'machine.json')}"


def _verified(summary: Summary) -> str:
    """By what, or that nothing has."""
    state = summary.stages.get(VERIFY)
    if state is None or "checksums_compared" not in state.metrics:
        return "nothing: no stage has compared the weights with what they must be"
    compared, wrong = state.metrics["checksums_compared"], state.metrics["mismatches"]
    return f"the stage {VERIFY}, {compared:,.0f} checksums of 64 bits before and after the update, {wrong:,.0f} of them wrong"


def _why(state: StageState) -> str:
    return "same code, config, inputs and environment (key)" if state.state == "cached" else state.why


def _made_by(links: Links, summary: Summary, state: StageState, sealed: Sealed | None) -> str:
    """The stage's run; where it is another run's stage, also that one, by its name."""
    if not state.run_id:
        return ""
    own = links.run(state.run_id)
    parent = sealed.tags.get("mlflow.parentRunId") if sealed else None
    if sealed is None or not parent or parent == summary.run_id:
        return own
    when = sealed.tags.get(STARTED, "")[:16].replace("T", " ")
    return f"{own}, of {links.run(parent, sealed.tags.get(RUN_NAME) or parent[:8])} ({when})"


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def padded(note: str) -> str:
    """`note` with room beside the cells of its tables, which MLflow's UI sets without any."""
    return "\n".join(line.replace(" |", "&emsp; |") if line.startswith("| ") else line for line in note.split("\n"))
