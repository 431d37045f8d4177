"""Every run of the pipeline leaves its report, in its folder and in the store, and none is lost to it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import report
from pipeline.store import local_folder
from stages.errors import BadInput, MoesaicError
from tests.pipeline.conftest import Toy
from tests.pipeline.report.parsed import Node, parse
from tests.pipeline.report.test_page import check_alone, section, titles


def read(toy: Toy) -> Node:
    """The report of the last run: the one in its folder, which is the one in the store."""
    html = (toy.directory / "report.html").read_text(encoding="utf-8")
    check_alone(html)
    (run,) = toy.store.search("tags.`moesaic.kind` = 'run'", limit=1)
    folder = local_folder(run)
    assert folder is not None
    assert (folder / "report.html").read_text(encoding="utf-8") == html
    return parse(html.removeprefix("<!DOCTYPE html>\n"))


def banner(found: Node) -> str:
    return found.one(role="status").text


def test_of_a_run_and_of_one_from_checkpoints(toy: Toy) -> None:
    toy("make.label=<b>bold</b>")
    found = read(toy)
    assert titles(found) == ["What was asked", "What was found", "What else the stages found", "Provenance"]
    assert banner(found) == "✓ Done: up to sum: all that was asked for."
    assert found.one("pre", class_="command").text == "moesaic run 'make.label=<b>bold</b>'"
    assert (
        "sum: line" in section(found, "What else the stages found").text
    )  # a figure of a stage that the report knows nothing of
    assert "double.total" in section(found, "Provenance").text
    numbers = [cell.text for cell in section(found, "What else the stages found").all("td")]
    assert numbers == ["count", "3", "total", "6", "sum", "6"]
    toy()
    found = read(toy)
    assert [node.text for node in found.all(class_="state")] == ["↺ cached"] * 3
    assert "sum: line" in section(found, "What else the stages found").text


def test_of_a_part_of_the_pipeline(toy: Toy) -> None:
    toy("run.last=make")
    assert banner(read(toy)) == "✓ Done: up to make: all that was asked for."


@pytest.mark.parametrize("fail", ["error", "corrupt", "crash"])
def test_of_a_run_that_failed(toy: Toy, fail: str) -> None:
    with pytest.raises((MoesaicError, ZeroDivisionError)) as caught:
        toy(f"double.fail={fail}")
    found = read(toy)
    assert banner(found).startswith("✕ Failed: ")
    assert str(caught.value) in banner(found)
    assert [node.text for node in found.all(class_="state")] == ["✓ ran", "✕ failed", "– skipped"]
    # What a stage left although it failed is shown; of the others there is nothing.
    assert ("Stage double: key and files" in found.text) == (fail == "corrupt")


def test_of_a_run_that_was_refused_there_is_none_that_shows_an_earlier_one(toy: Toy) -> None:
    toy()
    first = toy.directory
    with pytest.raises(BadInput):
        toy("make.count=0", directory=first)
    assert "✓ Done" in (first / "report.html").read_text(encoding="utf-8")  # the folder still shows the run that ran


def test_a_dry_run_leaves_none(toy: Toy) -> None:
    toy("run.dry_run=true")
    assert not (toy.directory / "report.html").exists()


def test_a_stage_folder_that_another_config_made_is_not_shown(toy: Toy) -> None:
    toy()
    with pytest.raises(MoesaicError):
        toy("make.count=5", "double.fail=error", directory=toy.directory)
    found = read(toy)
    assert "Stage make: key and files" in found.text
    assert "Stage double: key and files" not in found.text
    assert [node.text for node in section(found, "What else the stages found").all("h3")] == ["Stage make"]


def test_a_fault_of_the_report_ends_no_run(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    toy()

    def broken(*arguments: object) -> Path:
        raise ValueError("a bug")

    monkeypatch.setattr(report, "write_report", broken)
    summary = toy("seed=1", directory=toy.directory)
    assert summary.status == "done"
    assert toy.lines[-1] == "There is no report.html of this run: ValueError: a bug"
    assert not (toy.directory / "report.html").exists()  # an earlier run's would be taken for this one's
