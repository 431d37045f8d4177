"""Someone who was not there opens the UI in a browser: what they see of runs, stages, a sweep and a comparison."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest

from tests.browser.conftest import Shown, kept
from tests.pipeline.test_cli import _quiet_logging  # noqa: F401

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = [pytest.mark.alone, pytest.mark.timeout(400)]  # pages load slowly beside other tests


def opened(page: Page, address: str) -> None:
    """A page of its own: from another one the UI would only change its route."""
    page.goto("about:blank")
    page.goto(address)


def has_picture(page: Page) -> None:
    page.wait_for_function("[...document.images].some(i => i.complete && i.naturalWidth > 400 && i.clientWidth > 200)")


def test_the_address_that_is_told_shows_the_runs_with_what_matters(shown: Shown, page: Page) -> None:
    opened(page, shown.listed)
    page.get_by_text("sweep model=tiny").first.wait_for()
    for text in ("tiny 1x2", "place.balancedness", "place.moved_slots", "synthetic lognormal"):
        page.get_by_text(text).first.wait_for()
    kept(page, "runs")


def test_a_runs_description_answers_and_leads_to_the_run_that_made_a_cached_stage(shown: Shown, page: Page) -> None:
    opened(page, shown.page(shown.second))
    page.get_by_text("balancedness 0.").first.wait_for()
    kept(page, "run")
    page.get_by_text("Show more").first.click()
    for question in ("which data", "which config", "which code", "which machine", "verified by"):
        page.get_by_role("cell", name=question).wait_for()
    assert "400 checksums of 64 bits" in page.get_by_role("row", name="verified by").inner_text()
    row = page.get_by_role("row", name="place cached")
    assert "same code, config, inputs and environment" in row.inner_text()
    kept(page, "description")
    with page.expect_popup() as origin:
        row.get_by_role("link").nth(1).click()
    origin.value.get_by_text(shown.first).first.wait_for()
    origin.value.get_by_text("Show more").first.click()
    with origin.value.expect_popup() as moves:
        origin.value.get_by_role("link", name="which experts moved where").click()
    moves.value.get_by_text("GPUs before").first.wait_for()
    assert f"/runs/{shown.stage(shown.first, 'place')}/artifacts/moves.csv" in moves.value.url
    kept(moves.value, "moves")
    origin.value.close()
    moves.value.close()


def test_the_report_is_rendered(shown: Shown, page: Page) -> None:
    opened(page, shown.page(shown.first, "report.html"))
    report = page.frame_locator("iframe")
    report.get_by_text("What was asked").first.wait_for()
    report.get_by_text("tiny on 1 × 2 GPUs").first.wait_for()
    assert report.locator("svg").first.evaluate("s => s.getBoundingClientRect().width") > 200
    kept(page, "report")


def test_a_sweep_shows_its_comparison(shown: Shown, page: Page) -> None:
    opened(page, shown.page(shown.sweep))
    page.get_by_text("points are beaten by no other").first.wait_for()
    page.get_by_text("Show more").first.click()
    best = page.get_by_role("row", name="topology.nodes=2 place=eplb")
    assert "done" in best.inner_text()
    kept(page, "sweep")
    with page.expect_popup() as point:
        best.get_by_role("link").first.click()
    point.value.get_by_text(shown.points[3]).first.wait_for()
    point.value.close()
    opened(page, shown.page(shown.sweep, "comparison.png"))
    has_picture(page)
    kept(page, "comparison")


def test_stage_pages_preview_pictures_tables_and_json(shown: Shown, page: Page) -> None:
    place, plan, verify = (shown.stage(shown.first, name) for name in ("place", "plan", "verify"))
    opened(page, shown.page(place))
    page.get_by_text("Balancedness").first.wait_for()
    page.get_by_text(f"from collect, run {shown.stage(shown.first, 'collect')}", exact=False).first.wait_for()
    opened(page, shown.page(place, "figures/gpu_load.png"))
    has_picture(page)
    kept(page, "stage")
    opened(page, shown.page(plan, "transfers.csv"))
    page.get_by_text("logical_expert").first.wait_for()
    opened(page, shown.page(verify, "verdict.json"))
    page.get_by_text('"passed": true').first.wait_for()


def test_the_compare_view_names_what_differs(shown: Shown, page: Page) -> None:
    runs = quote(json.dumps([shown.points[0], shown.points[3]]))
    opened(
        page, f"{shown.address}/#/compare-runs?runs={runs}&experiments={quote(json.dumps([shown.store.experiment_id]))}"
    )
    page.get_by_text("Comparing 2 Runs from 1 Experiment").wait_for()
    for text in ("place.algorithm", "contiguous", "eplb"):
        page.get_by_text(text).first.wait_for()
    kept(page, "compare")
