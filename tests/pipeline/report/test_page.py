"""The page: its sections and their order, what it says of each kind of run, and that it loads and runs nothing."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.report.gpus import engines
from pipeline.report.material import Material, Origin, gather
from pipeline.report.moves import bytes_said, held, off_by
from pipeline.report.opening import asked_rows
from pipeline.report.page import POLICY, SECTIONS, UNMADE, page
from pipeline.summary import StageState, Summary
from stages.balance import engine_metrics
from stages.gpu_balance import GpuBalance
from stages.holdings import Holdings
from stages.load import LoadStats
from tests.pipeline.report.made import STAGES, leave
from tests.pipeline.report.parsed import Node, parse

ALL = [
    "What was asked", "What was found", "GPU load before and after", "Load against the bound", "Expert skew",
    "Replica counts", "Traffic between GPUs", "The update over time", "Predicted and measured", "Checksum verdict",
    "Balance as each engine measures it", "Provenance",
]  # fmt: skip
NOT_LOADED = {"script", "link", "iframe", "object", "embed", "base", "form", "audio", "video", "foreignobject", "use"}


def titles(found: Node) -> list[str]:
    return [node.text for node in found.one("main").all("h2")]


def section(found: Node, name: str) -> Node:
    return next(node for node in found.all("section") if node.one("h2").text == name)


def check_alone(html: str) -> None:
    """Nothing on the page is loaded from elsewhere, nothing runs, and every section could be made."""
    assert UNMADE not in html
    found = parse(html.removeprefix("<!DOCTYPE html>\n"))
    names = {node.name for node in found.all()}
    assert not names & NOT_LOADED
    ids = {node.attributes["id"] for node in found.all() if "id" in node.attributes}
    for node in found.all():
        for name, value in node.attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "srcset", "data", "action", "poster", "xlink:href"):
                assert value.startswith("data:image/png;base64,") or value[1:] in ids, (node.name, name, value[:80])
            assert "url(" not in value
    assert not re.search(r"url\(|@import", found.one("style").text)
    (policy,) = [node for node in found.all("meta") if "http-equiv" in node.attributes]
    assert policy.attributes["http-equiv"] == "Content-Security-Policy"
    assert policy.attributes["content"] == POLICY


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Material:
    return leave(tmp_path_factory.mktemp("whole"))


def test_a_whole_run_has_every_section_in_order(whole: Material) -> None:
    html = page(whole)
    check_alone(html)
    found = parse(html.removeprefix("<!DOCTYPE html>\n"))
    assert titles(found) == ALL
    assert not found.all("a")  # the sandbox of MLflow's preview follows none, not even within the page
    assert found.one("meta", name="viewport").attributes["content"].startswith("width=device-width")
    assert "prefers-color-scheme:dark" in found.one("style").text
    assert [section.title for section in SECTIONS if section.title != "What else the stages found"] == ALL
    banner = section(found, "What was found").one(role="status")
    assert banner.text == "✓ Verified: every byte is where it belongs."
    tiles = [tile.text for tile in found.all(class_="tile")]
    assert "Balancedness0.5000 → 0.9000" in tiles[0]
    assert tiles[1].startswith("Slots that change GPU17")
    assert "1 GB" not in tiles[2]
    assert "Update250 mspredicted 500 ms" in tiles[3]
    assert "Checksums1,000compared, 0 wrong" in tiles[4]
    rows = [[cell.text for cell in row.all("td")] for row in section(found, "What was found").one("tbody").all("tr")]
    assert rows[0] == ["collect", "✓ ran", "1.5 s", "first run", "abababab"]
    predicted = section(found, "Predicted and measured").text
    assert "The prediction is 100% too much" in predicted
    assert "moesaic doctor --calibrate" in section(found, "Predicted and measured").one("code").text
    assert "Every rank received the bytes that were planned" in predicted
    assert len(section(found, "GPU load before and after").all("image")) == 2
    assert "d" * 64 in section(found, "Provenance").all("table")[0].text
    for chart in found.all("svg", role="img"):
        assert chart.attributes["aria-label"]


@pytest.mark.parametrize(
    ("upto", "status", "shown", "banner"),
    [
        ("collect", "done", ["Expert skew"], "✓ Done: up to collect: all that was asked for."),
        ("plan", "done", ALL[2:7] + ALL[10:11], "✓ Done: up to plan: all that was asked for."),
        ("update", "failed", ALL[2:9] + ALL[10:11], "✕ Failed: Layer 3 is <wrong>."),
    ],
)
def test_a_run_has_the_sections_that_it_has_something_for(
    tmp_path: Path, upto: str, status: str, shown: list[str], banner: str
) -> None:
    html = page(leave(tmp_path, upto=upto, status=status, cause="Layer 3 is <wrong>." if status == "failed" else None))
    check_alone(html)
    found = parse(html.removeprefix("<!DOCTYPE html>\n"))
    assert titles(found) == [*ALL[:2], *shown, ALL[-1]]
    assert section(found, "What was found").one(role="status").text == banner
    states = [node.text for node in found.all(class_="state")]
    assert states.count("– skipped") == 5 - (["collect", "place", "plan", "update"].index(upto) + 1)


def test_a_run_that_was_refused_says_why() -> None:
    html = page(Material(Summary(None, cause="place.path=x does not exist."), Origin({})))
    check_alone(html)
    found = parse(html.removeprefix("<!DOCTYPE html>\n"))
    assert titles(found) == [ALL[0], ALL[1], ALL[-1]]
    assert "✕ Failed: place.path=x does not exist." in found.text
    assert "No stage was reached." in found.text


def test_a_verdict_names_what_is_wrong(tmp_path: Path) -> None:
    found = parse(
        page(leave(tmp_path, wrong=60, status="failed", cause="60 are wrong.")).removeprefix("<!DOCTYPE html>\n")
    )
    shown = section(found, "Checksum verdict")
    assert shown.one(class_="banner").text == "✕ Failed: 60 checksums of 1,000 are wrong."
    rows = [[cell.text for cell in row.all("td")] for row in shown.one("tbody").all("tr")]
    assert len(rows) == 50
    assert rows[0] == ["2", "5", "1", "7", "w2_weight", "after", "aaaa", "bbbb", "old holders", "expert 3 of layer 1"]
    assert "The first 50 of 60" in shown.text


def test_nothing_that_a_config_or_a_run_says_becomes_html(tmp_path: Path) -> None:
    evil = "</style></title><script>alert(1)</script><img src=x onerror=alert(1)>\"'><!--"
    material = leave(tmp_path, status="failed", cause=evil)
    origin = Origin(
        asked={
            "model": {"name": evil}, "topology": {"nodes": 2, "gpus_per_node": 2, "name": evil},
            "collect": {"source": "table", "path": evil}, "place": {"algorithm": evil, "lost_ranks": [evil]},
            "run": {"force": [evil]},
        },
        overrides=(evil,), config=evil, machine={"host": evil, "packages": {evil: evil}}, git={"commit": evil}, written=evil,
    )  # fmt: skip
    states = {evil: StageState(evil, evil, 1.0, evil, "k", {evil: 1.0}), **material.summary.stages}
    summary = replace(material.summary, stages=states, run_id=evil)
    assert material.traffic is not None
    traffic = {**material.traffic, "rows": {evil: 1}, "predicted": {"busiest_link": evil, "busiest_link_seconds": 1.0}}
    manifest = material.manifests["place"]
    manifests = {evil: replace(manifest, inputs={evil: evil}, outputs={evil: evil}, environment={evil: evil})}
    assert material.execution is not None
    assert material.verdict is not None
    execution = replace(material.execution, device=evil, backend=evil, split={evil: 1.0})
    verdict = replace(material.verdict, passed=False, fault=evil, checks=[evil])
    hostile = replace(
        material,
        summary=summary,
        origin=origin,
        traffic=traffic,
        manifests=manifests,
        execution=execution,
        verdict=verdict,
    )
    html = page(hostile)
    check_alone(html)
    clean = parse(page(material).removeprefix("<!DOCTYPE html>\n"))
    found = parse(html.removeprefix("<!DOCTYPE html>\n"))
    assert {node.name for node in found.all()} <= {node.name for node in clean.all()} | {"pre"}
    assert found.text.count(evil) > 20
    assert found.one("head").one("title").text.startswith(evil)


def test_no_password_is_on_the_page() -> None:
    uri = "postgresql://me:hunter2@db/x"
    origin = Origin(
        {"tracking": {"uri": uri}}, overrides=(f"tracking.uri={uri}",), config=f"tracking: {{uri: '{uri}'}}\n"
    )
    html = page(Material(Summary(None, cause=f"{uri} is gone"), origin))
    assert "hunter2" not in html
    assert html.count("postgresql://me:***@db/x") == 3


def test_deepseek_v3_on_32_ranks_with_every_stage_is_small(tmp_path: Path) -> None:
    material = leave(tmp_path, layers=58, experts=256, nodes=4, gpus_per_node=8, slots=288, batches=120)
    html = page(material)
    check_alone(html)
    assert len(html.encode()) < 1_500_000


def test_a_file_of_another_kind_under_a_known_name_costs_its_section_alone(tmp_path: Path) -> None:
    leave(tmp_path)
    (tmp_path / "update" / "trace.json").write_text('{"spans": []}')
    (tmp_path / "plan" / "traffic.json").write_text("[1]")
    states = {name: StageState("ran", "", key=f"{name}-key") for name in STAGES}
    html = page(gather(tmp_path, Summary(None, states, "done"), Origin({})))
    found = parse(html.removeprefix("<!DOCTYPE html>\n"))
    assert [name for name in ALL if name not in titles(found)] == ["The update over time"]
    assert "Not shown, as it could not be read: update/trace.json: KeyError" in section(found, "Provenance").text
    assert section(found, "Traffic between GPUs").text.startswith(f"Traffic between GPUs{UNMADE}: ")
    assert "All 1,000 checksums" in section(found, "Checksum verdict").text


def test_an_update_that_stopped_says_what_is_held(tmp_path: Path) -> None:
    material = leave(tmp_path, upto="plan", status="failed", cause="rank 1 died")
    stopped = replace(material, holdings=Holdings(9, [3, 3], [], [], [[0]]))
    found = parse(page(stopped).removeprefix("<!DOCTYPE html>\n"))
    shown = section(found, "The update over time").text
    assert "3 of 9 batches were committed" in shown
    assert "Every logical expert is held somewhere." in shown


@pytest.mark.parametrize("gpus", [1, 2])
def test_the_smallest_model_makes_a_page(tmp_path: Path, gpus: int) -> None:
    material = leave(tmp_path, layers=1, experts=1, nodes=1, gpus_per_node=gpus, slots=gpus, batches=1)
    html = page(material)
    check_alone(html)
    assert titles(parse(html.removeprefix("<!DOCTYPE html>\n"))) == ALL


def test_loads_of_nothing_make_a_page(whole: Material) -> None:
    assert whole.balance is not None
    assert whole.load is not None
    nothing = GpuBalance(*(0 * values for values in (whole.balance.before, whole.balance.after, whole.balance.bound)))
    html = page(replace(whole, balance=nothing, load=LoadStats(0 * whole.load.logical_count)))
    check_alone(html)
    assert not re.search(r"\b(nan|inf)\b", parse(html.removeprefix("<!DOCTYPE html>\n")).text)


def test_thousands_of_gpus_make_a_page(tmp_path: Path) -> None:
    material = leave(tmp_path, layers=2, experts=512, nodes=128, gpus_per_node=8, slots=1024, batches=1)
    assert material.traffic is not None
    nodes = np.ones((128, 128)).tolist()
    traffic = {k: v for k, v in material.traffic.items() if k != "bytes_from_rank_to_rank"} | {
        "bytes_from_node_to_node": nodes
    }
    html = page(replace(material, traffic=traffic))
    assert "Bytes from node to node" in html
    assert len(html.encode()) < 1_500_000


def test_the_balance_is_what_every_engine_calls_it(whole: Material) -> None:
    assert whole.balance is not None
    rows = [[cell.text for cell in row.all("td")] for row in parse(engines(whole.balance)).one("tbody").all("tr")]
    assert [row[0] for row in rows] == ["SGLang", "vLLM", "TensorRT-LLM", "vLLM-Ascend"]
    for column, gpu in ((2, whole.balance.before), (3, whole.balance.after)):
        assert [row[column] for row in rows] == [f"{value:.4f}" for value in engine_metrics(gpu).values()]


def test_gpus_that_join_are_drawn_beside_those_that_were_there(whole: Material) -> None:
    assert whole.balance is not None
    grown = replace(whole.balance, before=whole.balance.before[:, :2])
    found = parse(page(replace(whole, balance=grown)).removeprefix("<!DOCTYPE html>\n"))
    before, after = section(found, "GPU load before and after").all("figure")
    assert len(before.all("title")) == 2 * 3
    assert len(after.all("title")) == 4 * 3
    bars = section(found, "Load against the bound").all("figure")[0]
    assert [title.text.startswith(f"GPU {gpu}: ") for gpu, title in enumerate(bars.all("title"))] == [True] * 4


@pytest.mark.parametrize(
    ("planned", "first", "said"),
    [
        ([5, 7], 0, "Every rank received the bytes that were planned: 12 B in all, 7 B the busiest."),
        ([5, 9], 0, "Received 12 B, where 14 B were planned; they differ on 1 rank: 1."),
        ([6, 9], 2, "Received 12 B, where 15 B were planned; they differ on 2 ranks: 0, 1. 2 batches had been committed by an earlier run."),
    ],
)  # fmt: skip
def test_bytes_are_held_against_the_plan(whole: Material, planned: list[int], first: int, said: str) -> None:
    assert whole.execution is not None
    assert bytes_said(planned, replace(whole.execution, received_bytes=[5, 7], first=first)) == said


@pytest.mark.parametrize(
    ("foretold", "said"),
    [
        (1.0, "right"),
        (1.2, "20% too much"),
        (0.6, "40% too little"),
        (3.0, "3 times too much"),
        (0.01, "100 times too little"),
    ],
)
def test_a_prediction_is_off_in_words(foretold: float, said: str) -> None:
    assert off_by(foretold, 1.0) == said


def test_what_is_held_after_an_end_before_its_time() -> None:
    found = parse(held(Holdings(9, [3, 4, None], [2], [[0, 7]], [[0]], checked=10, wrong=[[0, 1, 2]])))
    lines = [node.text for node in found.all("li")]
    assert lines[0].startswith("3 to 4 of 9 batches were committed")
    assert "rank 2" in lines[1]
    assert "layer 0 expert 7" in lines[2]
    assert "10 checksums of slots were compared with what the map says, 1 differ" in lines[3]


@pytest.mark.parametrize(
    ("config", "name", "said"),
    [
        ({"model": {"name": "m", "layers": 1, "experts": 8, "scale": 0.015625}}, "Model", "m · 1 MoE layer · 8 experts · tensors scaled to 1.562%"),
        ({"collect": {"source": "sample", "sample": "s", "path": None, "label": "mmlu"}}, "Loads", "sample s · label mmlu"),
        ({"collect": {"source": "sglang", "path": "d", "sample": "s"}}, "Loads", "sglang · path d"),
        ({"topology": {"name": "h", "nodes": 4, "gpus_per_node": 8, "links": {"within_node": {"gb_per_s": 350.0}, "between_nodes": {"gb_per_s": 50.0}}}},
         "GPUs", "4 × 8 GPUs · h · 350 GB/s within a node, 50 GB/s between nodes"),
        ({"place": {"algorithm": "eplb", "redundant_experts": 1, "current": "contiguous", "max_moved_slots": None}}, "Placement",
         "eplb · 1 redundant expert a layer · current contiguous"),
        ({"run": {"first": None, "last": "plan", "force": ["plan"]}}, "Stages", "the first to plan; made anew: plan"),
        ({"topology": {"name": "2x4", "nodes": 2, "gpus_per_node": 2}}, "GPUs", "2 × 2 GPUs"),
        ({"run": {"only": "place"}}, "Stages", "place to place"),
        ({"make": {"count": 3}}, "Stages", "all"),
    ],
)  # fmt: skip
def test_what_was_asked_in_words(config: dict[str, object], name: str, said: str) -> None:
    assert dict(asked_rows(config))[name] == said
