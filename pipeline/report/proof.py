"""The checksum verdict."""

from __future__ import annotations

from pipeline.report.markup import Html, join, table, tag
from pipeline.report.units import bytes_text, count, seconds
from stages.verdict import MISMATCH_COLUMNS, Verdict, mismatch_rows

ROWS = 50


def verdict(found: Verdict) -> Html:
    wrong = len(found.mismatches)
    cause = found.fault or (
        f"{count(wrong, 'checksum')} of {found.compared:,} {'is' if wrong == 1 else 'are'} wrong."
        if wrong
        else found.functional_fault
    )
    said = cause or f"All {found.compared:,} checksums are those of the experts that belong there."
    lines = [
        tag(
            "p",
            tag("b", "✓ Passed" if found.passed else "✕ Failed"),
            f": {said}",
            class_=f"banner {'good' if found.passed else 'bad'}",
        )
    ]
    if found.checks:
        lines.append(tag("ul", *(tag("li", check) for check in found.checks)))
    if found.seconds > 0:
        speed = found.nbytes / found.seconds / 1e9
        lines.append(
            tag(
                "p",
                f"The audit speaks for {bytes_text(found.nbytes)} of weights and took {seconds(found.seconds)} ({speed:.3g} GB/s).",
            )
        )
    if found.mismatches:
        lines.append(table(MISMATCH_COLUMNS, [tuple(row) for row in mismatch_rows(found)[:ROWS]]))
    if wrong > ROWS:
        lines.append(tag("p", f"The first {ROWS} of {wrong:,}; all are in verdict.json."))
    return join(*lines)
