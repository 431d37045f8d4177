"""A store with a sweep and two runs, the live `moesaic ui` on it, and a headless Chromium that looks at it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pipeline.cli import main
from pipeline.store import SQLITE, TAG, Store

if TYPE_CHECKING:
    from playwright.sync_api import Page

ROOT = Path(__file__).parents[2]
SCREENSHOTS = ROOT / "outputs" / "screenshots"
NAMES = ("chromium", "chromium-browser", "google-chrome")
SECONDS = 60
RUN = ("model=tiny", "collect=synthetic", "topology=1x2", "place.redundant_experts=2")
SWEEP = (
    "-m",
    "model=tiny",
    "collect=synthetic",
    "topology.nodes=1,2",
    "topology.gpus_per_node=2",
    "place=contiguous,eplb",
)
WITHOUT_ASSISTANT = """
localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true');
localStorage.setItem('mlflow.assistant.panelOpen_v1', 'false');
"""


@dataclass
class Shown:
    """`address`: of the UI. `listed`: the page that `moesaic ui` says. `first`, `second` (which took its placement from
    the first), `points` and `sweep`: ids of runs."""

    address: str
    listed: str
    store: Store
    first: str
    second: str
    sweep: str
    points: list[str]

    def page(self, run_id: str, file: str | None = None) -> str:
        where = f"/artifacts/{file}" if file else ""
        return f"{self.address}/#/experiments/{self.store.experiment_id}/runs/{run_id}{where}?workflowType=machine_learning"

    def stage(self, run_id: str, name: str) -> str:
        return str(self.store.run(run_id).data.tags[f"{TAG}stage.{name}"].split()[1])


@pytest.fixture(scope="session")
def chromium() -> str:
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    pytest.importorskip("playwright", reason="Playwright is not installed: pip install 'moesaic[browser]'")
    return found


@pytest.fixture(scope="session")
def shown(chromium: str, migrated: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    folder = tmp_path_factory.mktemp("shown")
    (folder / "outputs").mkdir()
    shutil.copy(migrated, folder / "outputs" / "mlflow.db")
    here = Path.cwd()
    os.chdir(folder)
    try:
        assert main(["run", *RUN, "hydra.run.dir=first"]) == 0
        assert main(["run", *RUN, "run.force=[update]", "hydra.run.dir=second"]) == 0
        assert main(["run", *SWEEP, "run.last=plan", "hydra.sweep.dir=swept"]) == 0
    finally:
        os.chdir(here)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", "ui", "--port", str(port)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert server.stdout is not None
        listed = server.stdout.readline().partition("The runs: ")[2].split()[0]
        address = f"http://127.0.0.1:{port}"
        _wait_for(f"{address}/health", server)
        store = Store(f"{SQLITE}{folder / 'outputs' / 'mlflow.db'}", "moesaic", create=False)
        ids = [json.loads((folder / name / "summary.json").read_text())["run_id"] for name in ("first", "second")]
        sweep = json.loads((folder / "swept" / "sweep.json").read_text())["run_id"]
        points = [json.loads((folder / "swept" / str(n) / "summary.json").read_text())["run_id"] for n in range(4)]
        yield Shown(address, listed, store, *ids, sweep, points)
    finally:
        server.terminate()
        server.wait(30)


def _wait_for(url: str, server: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + SECONDS
    while True:
        with suppress(OSError):
            urllib.request.urlopen(url, timeout=5).read()
            return
        assert server.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.fixture(scope="session")
def page(chromium: str) -> Iterator[Page]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        browser = playwright.chromium.launch(executable_path=chromium, args=arguments)
        context = browser.new_context(viewport={"width": 1400, "height": 900}, locale="en-GB", timezone_id="UTC")
        context.add_init_script(WITHOUT_ASSISTANT)
        context.set_default_timeout(SECONDS * 1000)
        yield context.new_page()
        browser.close()


def kept(page: Page, name: str) -> None:
    """Keep what the page shows."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.wait_for_timeout(500)  # what fades in
    page.screenshot(path=SCREENSHOTS / f"{name}.png")
