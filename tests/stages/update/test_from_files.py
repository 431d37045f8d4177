"""A GPU is lost, and with it experts that no other one holds: planned, run by both executors, and audited, with files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stages import paths
from stages.checksum_table import read_checksums
from stages.contract import silent
from stages.errors import BadInput
from stages.placement import Placement, write_placement
from stages.plan.config import PlanOptions, PlanStageConfig
from stages.plan.stage import plan
from stages.resize import without_ranks
from stages.update.stage import update
from stages.verify.config import VerifyOptions, VerifyStageConfig
from stages.verify.stage import verify
from stages.weight_source import truth
from tests.stages.checkpoints import EXPERTS, Checkpoint
from tests.stages.update.test_update_weights import NEW, OLD, RANKS, config_of, made

__all__ = ["made"]

LEFT = without_ranks(OLD, RANKS, [0], close_up=False)


@pytest.mark.parametrize("executor", ["reference", "pipelined"])
@pytest.mark.parametrize("policy", ["relay"])
def test_what_nobody_holds_any_more_is_read_from_files(
    made: Checkpoint, executor: str, policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = config_of(made, executor=executor)
    write_placement(tmp_path, Placement(NEW, LEFT, EXPERTS))
    inputs = {"placement": tmp_path / paths.PLACEMENT}
    planning = PlanStageConfig(PlanOptions(policy, weights="safetensors"), made.model, config.topology)
    found = plan(planning, inputs, tmp_path, silent)
    unheld = {(layer, e) for layer, row in enumerate(NEW) for e in row if e >= 0 and e not in LEFT[layer]}
    assert len(unheld) > 1
    assert f"{len(unheld)} experts that no GPU holds are read from files" in found.note

    inputs["transfers"] = tmp_path / paths.TRANSFERS
    (tmp_path / "update").mkdir()
    update(config, inputs, tmp_path / "update", silent)
    table = read_checksums(tmp_path / "update" / paths.CHECKSUMS)
    layer, slot = np.nonzero(NEW >= 0)
    assert config.weight_source is not None
    assert np.array_equal(table.after[layer, slot], truth(config.weight_source, layer, NEW[layer, slot]))

    inputs |= {
        name: tmp_path / "update" / f"{name}.{end}" for name, end in (("checksums", "parquet"), ("execution", "json"))
    }
    audit = VerifyStageConfig(VerifyOptions(weights="safetensors", weights_path=str(made.folder)), made.model, 0)
    (tmp_path / "verify").mkdir()
    assert verify(audit, inputs, tmp_path / "verify", silent).metrics["mismatches"] == 0


def test_without_files_they_are_named(made: Checkpoint, tmp_path: Path) -> None:
    write_placement(tmp_path, Placement(NEW, LEFT, EXPERTS))
    planning = PlanStageConfig(PlanOptions("direct"), made.model, config_of(made).topology)
    with pytest.raises(BadInput, match=r"layer 0: logical expert 2 is needed .* nor does one hold layer 1: logical"):
        plan(planning, {"placement": tmp_path / paths.PLACEMENT}, tmp_path, silent)
