"""The stage as the pipeline calls it: artifacts, metrics, figure, note, and what it says on the way."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stages.checksum_table import read_checksums
from stages.errors import BadInput
from stages.execution import read_execution
from stages.placement import Placement, write_placement
from stages.synthetic import truth
from stages.transfers import write_transfers
from stages.update import machine
from stages.update.measured import TIMED, Measured
from stages.update.stage import update
from tests.stages.update.cases import TENSORS, Case, config_of, job_of

CASE = Case(nodes=2, slots_per_rank=3, experts=6, kind="empty")
RANKS = 4
JOB = job_of(CASE, RANKS)


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Path]:
    write_placement(tmp_path, Placement(JOB.new, JOB.old, CASE.experts))
    write_transfers(tmp_path, JOB.plan)
    return {"placement": tmp_path / "placement.safetensors", "transfers": tmp_path / "transfers.parquet"}


def test_what_an_update_leaves(tmp_path: Path, inputs: dict[str, Path]) -> None:
    said: list[tuple[str, float]] = []
    folder = tmp_path / "update"
    folder.mkdir()
    result = update(
        config_of(CASE, RANKS), inputs, folder, lambda message, fraction, *counts: said.append((message, fraction))
    )

    assert set(result.files) == {
        "execution.json",
        "checksums.parquet",
        "checksums.csv",
        "trace.json",
        "functional.json",
    }
    assert {file.name for file in folder.iterdir()} == set(result.files)
    execution = read_execution(folder / "execution.json")
    assert execution.received_bytes == JOB.received_bytes().tolist()
    assert execution.sent_bytes == JOB.sent_bytes().tolist()
    assert (execution.executor, execution.backend, execution.ranks, execution.hosts) == ("reference", "gloo", 4, 1)
    assert execution.update_seconds == max(execution.rank_seconds)
    assert sum(execution.layer_seconds) >= 0.9 * execution.update_seconds
    assert execution.staging_bytes == CASE.slots_per_rank * config_of(CASE, RANKS).model.expert_bytes
    assert execution.effective_gb_per_s > 0
    assert execution.link_efficiency > 0
    names = {
        "update_seconds",
        "moved_bytes",
        "effective_gb_per_s",
        "link_gb_per_s",
        "link_efficiency",
        "staging_bytes",
        "peak_bytes",
    }
    assert dict(result.metrics) == {name: getattr(execution, name) for name in names}

    table = read_checksums(folder / "checksums.parquet")
    assert table.tensors == tuple(tensor.name for tensor in TENSORS)
    for expert_map, found in ((JOB.old, table.before), (JOB.new, table.after)):
        layer, slot = np.nonzero(expert_map >= 0)
        assert np.array_equal(found[layer, slot], truth(TENSORS, CASE.seed, layer, expert_map[layer, slot]))

    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    spans = [event for event in events if event["ph"] == "X"]
    assert {event["pid"] for event in events} == set(range(RANKS))
    assert len(spans) == RANKS * (len(TIMED) + CASE.layers)
    assert all(event["dur"] >= 0 and event["ts"] >= 0 for event in spans)
    layers = [event for event in spans if event["name"].startswith("layer") and event["pid"] == 2]
    (whole,) = [event for event in spans if event["name"] == "update" and event["pid"] == 2]
    assert [event["name"] for event in layers] == ["layer 0", "layer 1", "layer 2"]
    assert whole["ts"] <= layers[0]["ts"]
    assert layers[-1]["ts"] + layers[-1]["dur"] <= whole["ts"] + whole["dur"] + 1

    assert list(result.figures) == ["timeline"]
    result.figures["timeline"].savefig(tmp_path / "timeline.png")
    assert result.tags["backend"] == "gloo"
    assert f"moved {execution.moved_bytes:,} bytes" in result.note
    fractions = [fraction for _, fraction in said]
    assert fractions == sorted(fractions)
    assert fractions[0] >= 0
    assert fractions[-1] <= 1


def test_too_little_memory_is_said_before_ranks_start(
    tmp_path: Path, inputs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "available_memory", lambda: 10**6)
    with pytest.raises(BadInput, match=r"The slots of 4 ranks need 0\.\d GB, and this machine has 0\.0 GB"):
        update(config_of(CASE, RANKS), inputs, tmp_path, lambda message, fraction, *counts: None)


def test_too_little_disk_is_said_before_ranks_start(
    tmp_path: Path, inputs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(CASE, RANKS)
    config = replace(config, update=replace(config.update, save="shards"))
    needed = JOB.new.size * config.model.expert_bytes
    monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": needed - 1}))
    with pytest.raises(BadInput, match=r"^update\.save=shards needs 0\.0 GB in .*, and 0\.0 GB are free there\.$"):
        update(config, inputs, tmp_path, lambda message, fraction, *counts: None)


def test_another_scale_than_the_plan_was_made_for(tmp_path: Path, inputs: dict[str, Path]) -> None:
    config = config_of(CASE, RANKS)
    config = replace(config, model=replace(config.model, scale=0.5))
    with pytest.raises(BadInput, match=r"the plan was made for another model\.tensors or model\.scale"):
        update(config, inputs, tmp_path, lambda message, fraction, *counts: None)


def test_measured_survives_as_bytes() -> None:
    shapes = {
        "before": (2, 4, 3), "after": (2, 4, 3), "received": (2,), "sent": (2,), "staging": (2,), "peak": (2,), "seconds": (2,),
        "spans": (2, 6, 2), "events": (2, 3, 4), "faults": (1, 8), "held": (2, 4), "steps": (4,), "link_gb_per_s": (1,), "functional": (3,),
    }  # fmt: skip
    values = {name: np.arange(np.prod(shape)).reshape(shape) for name, shape in shapes.items()}
    again = Measured.from_bytes(Measured(**values).to_bytes())
    assert all(np.array_equal(getattr(again, name), value) for name, value in values.items())
    assert again.checksum_seconds() == 2.0
