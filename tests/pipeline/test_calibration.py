"""`moesaic doctor --calibrate`, and a run on what it wrote, the way that Hydra's users choose a config of their own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from pipeline.attached import overrides_of
from pipeline.cli import main
from pipeline.schema import CONF, register
from tests.pipeline.test_cli import _quiet_logging  # noqa: F401

RUN = ["model=tiny", "collect=synthetic", "run.last=plan", "hydra.run.dir=out"]


@pytest.mark.slow
def test_a_run_on_a_measured_topology(store_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--calibrate", "--nodes", "2", "--gpus-per-node", "2"]) == 0
    said = capsys.readouterr().out
    assert "Measured 2 x 2 ranks on 1 host" in said
    command = said.splitlines()[-1].partition("Use it: moesaic ")[2].split()
    assert command == ["run", "--config-dir", "conf", "topology=measured"]
    text = Path("conf/topology/measured.yaml").read_text()
    assert text.startswith("# Measured by `moesaic doctor --calibrate` on ")

    assert main([*command, *RUN]) == 0, capsys.readouterr().err
    config = json.loads(Path("out/plan/manifest.json").read_text())["config"]["topology"]
    assert (config["nodes"], config["gpus_per_node"]) == (2, 2)
    assert len(config["links"]["within_node"]["curve"]) > 3
    # Calibrating again writes over it, since it was measured.
    assert main(["doctor", "--calibrate", "--gpus-per-node", "2"]) == 0
    assert "nothing to measure for between_nodes" in Path("conf/topology/measured.yaml").read_text()


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("measured.yaml", "name a .yaml file in a folder topology, such as conf/topology/measured.yaml"),
        ("conf/topology/measured.json", "name a .yaml file in a folder topology"),
        ("conf/topology/mine.yaml", "it is there already and was not measured"),
    ],
)
def test_files_that_cannot_be(
    file: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("conf/topology").mkdir(parents=True)
    Path("conf/topology/mine.yaml").write_text("nodes: 3\n")
    assert main(["doctor", "--calibrate", file]) == 2
    assert words in capsys.readouterr().err
    assert Path("conf/topology/mine.yaml").read_text() == "nodes: 3\n"


def test_followers_find_a_config_folder_too(tmp_path: Path) -> None:
    (tmp_path / "topology").mkdir()
    (tmp_path / "topology" / "mine.yaml").write_text("defaults: [schema, _self_]\nnodes: 3\n")
    register()
    for flags in (["--config-dir", str(tmp_path)], [f"--config-dir={tmp_path}"], ["-cd", str(tmp_path)]):
        overrides = overrides_of(["-m", *flags, "topology=mine", "+x=1", "~seed"])
        assert overrides[:3] == ["topology=mine", "+x=1", "~seed"]
        with initialize_config_dir(str(CONF), version_base="1.3"):
            assert compose("config", [overrides[0], *overrides[3:]]).topology.nodes == 3
