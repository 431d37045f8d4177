"""The config surface is public: a change to it must be meant."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from pipeline.schema import CONF, check, register, stage_config
from stages.errors import BadInput
from tests.conf.surface import FILE, surface

OPTIONS = [
    f"{file.parent.name}={file.stem}"
    for file in sorted(CONF.glob("*/*.yaml"))
    if file.parent.name not in ("experiment", "pipeline", "tracking")
]


def test_the_surface_is_frozen() -> None:
    assert surface() == FILE.read_text(encoding="utf-8"), "meant? then: python -m tests.conf.surface"


@pytest.mark.parametrize("option", OPTIONS)
def test_every_choice_composes_into_its_stages(option: str, tmp_path: Path) -> None:
    register()
    table = tmp_path / "loads.csv"
    table.write_text("layer,expert,count\n0,0,1\n")
    extra = [f"collect.path={table}"] if option == "collect=table" else []
    extra += ["experiment=replay"] if option.startswith("replay=") else []  # which brings that group
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", [option, *extra])
    _, specs = check(config)
    for spec in specs:
        if option == "place=file" and spec.name == "place":
            with pytest.raises(BadInput, match=r"place\.path"):
                stage_config(config, spec)
        else:
            assert stage_config(config, spec) is not None
