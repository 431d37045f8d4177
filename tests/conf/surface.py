"""Write the config surface anew, after a change that is meant: python -m tests.conf.surface"""

from __future__ import annotations

from pathlib import Path

import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from pipeline.schema import CONF, register

FILE = Path(__file__).with_name("surface.yaml")


def surface() -> str:
    """Every config key with its default, and the choices of every group."""
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = OmegaConf.to_container(compose("config"), resolve=False)
    choices = {
        folder.name: sorted(file.stem for file in folder.glob("*.yaml"))
        for folder in sorted(CONF.iterdir())
        if list(folder.glob("*.yaml"))
    }
    return yaml.safe_dump({"defaults": config, "choices": choices}, sort_keys=True, allow_unicode=True)


if __name__ == "__main__":
    FILE.write_text(surface(), encoding="utf-8")
