"""`moesaic doctor --calibrate FILE`: measures this machine's links and writes them as a topology that runs can choose."""

from __future__ import annotations

import importlib
import os
from datetime import UTC, datetime
from pathlib import Path

import yaml

from pipeline.declaration import StageDeclaration
from pipeline.schema import CONF
from stages import paths
from stages.errors import BadInput
from stages.topology import as_config

GROUP = "topology"
REMARK = "Measured by `moesaic doctor --calibrate`"


def calibrate(file: Path, nodes: int | None, gpus_per_node: int | None, backend: str) -> str | None:
    """Measure and write `file`; what was found and how to use it, None on a rank that only takes part."""
    if os.environ.get("RANK", "0") == "0":  # the others write nothing
        _check(file)
    found = importlib.import_module(_calibration()).calibrate(file.stem, nodes, gpus_per_node, backend)
    if found is None:
        return None
    topology, links = found.topology, found.topology.links
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    where = f"{found.hosts} host{'s' if found.hosts > 1 else ''} ({found.device}), {found.backend}"
    remarks = [f"{REMARK} on {now}: {topology.nodes} x {topology.gpus_per_node} ranks on {where}."]
    for size, name, other in (
        (topology.gpus_per_node, "within_node", "between"),
        (topology.nodes, "between_nodes", "within"),
    ):
        if size == 1:
            remarks.append(f"There was nothing to measure for {name}: what was found {other} stands there.")
    paths.write_text(file, as_config(topology, remarks))
    node = f"; a node {topology.node_gb_per_s:.3g} GB/s" if topology.nodes > 1 else ""
    between = f"{links.between_nodes.gb_per_s:.3g} GB/s" if topology.nodes > 1 else "not measured: one node"
    return (
        f"Measured {topology.nodes} x {topology.gpus_per_node} ranks on {where}.\n"
        f"within a node   {links.within_node.gb_per_s:.3g} GB/s\n"
        f"between nodes   {between}{node}\n"
        f"copies          {topology.device.copy_gb_per_s:.3g} GB/s, checksums {topology.device.checksum_gb_per_s:.3g} GB/s\n"
        f"Wrote {file}. Use it: moesaic run --config-dir {file.parent.parent} {GROUP}={file.stem}"
    )


def _check(file: Path) -> None:
    """Hydra looks for choices of a group in folders of its name."""
    if file.suffix != ".yaml" or file.parent.name != GROUP:
        raise BadInput(
            f"--calibrate {file} is not possible: name a .yaml file in a folder {GROUP}, such as "
            f"conf/{GROUP}/measured.yaml, where `moesaic run --config-dir conf {GROUP}=measured` finds it."
        )
    if file.exists() and REMARK not in file.read_text(encoding="utf-8", errors="replace").split("\n", 1)[0]:
        raise BadInput(f"--calibrate {file} is not possible: it is there already and was not measured; name another.")


def _calibration() -> str:
    """The module that measures, as the shipped pipeline declares it."""
    text = (CONF / "pipeline" / "default.yaml").read_text(encoding="utf-8")
    for value in yaml.safe_load(text)["stages"].values():
        if module := StageDeclaration(**value).calibration:
            return module
    raise BadInput("No stage of the pipeline declares how to calibrate.")
