"""What a reader of the tracking UI is told about a verdict."""

from __future__ import annotations

from stages.verdict import MISMATCH_COLUMNS, Verdict, mismatch_rows

ROWS = 50


def note(verdict: Verdict) -> str:
    """Markdown: the verdict, what was checked, and the first mismatches."""
    parts = [f"**Verdict: {'passed' if verdict.passed else 'failed'}.** {summary(verdict)}"]
    if verdict.checks:
        parts.append("\n".join(f"- {check}" for check in verdict.checks))
    if verdict.mismatches:
        rows = [MISMATCH_COLUMNS, ["---"] * len(MISMATCH_COLUMNS), *mismatch_rows(verdict)[:ROWS]]
        parts.append("\n".join(f"| {' | '.join(row)} |" for row in rows))
        if len(verdict.mismatches) > ROWS:
            parts.append(f"The first {ROWS} of {len(verdict.mismatches):,}; all are in `verdict.json`.")
    return "\n\n".join(parts) + "\n"


def summary(verdict: Verdict) -> str:
    """One sentence: the cause where there is one, else how much was compared."""
    if verdict.fault:
        return verdict.fault
    if verdict.mismatches:
        count = len(verdict.mismatches)
        return (
            f"{count:,} of {verdict.compared:,} checksums {'is wrong:' if count == 1 else 'are wrong; the first:'} "
            f"{verdict.mismatches[0]}."
        )
    if verdict.functional_fault:
        return verdict.functional_fault
    return f"All {verdict.compared:,} checksums are those of the experts that belong there."
