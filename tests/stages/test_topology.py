"""Topologies: their ranks and links, what they refuse, and those that are shipped."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import conf
from stages.errors import BadInput
from stages.topology import Device, Link, Links, Topology

SHIPPED = sorted((Path(conf.__file__).parent / "topology").glob("*.yaml"))


def test_ranks_and_their_nodes() -> None:
    topology = Topology(nodes=2, gpus_per_node=3)
    assert topology.ranks == 6
    assert topology.node_of_rank().tolist() == [0, 0, 0, 1, 1, 1]


def test_seconds_of_a_link() -> None:
    assert Link(2.0, 5.0).seconds(4e9, messages=3) == pytest.approx(2 + 15e-6)
    assert Link(2.0, 5.0).seconds(0) == pytest.approx(5e-6)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"nodes": 0}, "topology.nodes=0"),
        ({"gpus_per_node": -2}, "topology.gpus_per_node=-2"),
        ({"gpus_per_host": 0}, "topology.gpus_per_host=0"),
        ({"links": Links(within_node=Link(0.0))}, "topology.links.within_node.gb_per_s=0.0"),
        ({"links": Links(between_nodes=Link(float("nan")))}, "topology.links.between_nodes.gb_per_s=nan"),
        ({"links": Links(between_nodes=Link(1.0, -1.0))}, "topology.links.between_nodes.latency_us=-1.0"),
        ({"links": Links(within_node=Link(curve=[[1, 0.5], [1, 0.6]]))}, "within_node.curve holds [1, 0.6]"),
        ({"links": Links(within_node=Link(curve=[[1, 1.5]]))}, "topology.links.within_node.curve holds [1, 1.5]"),
        ({"links": Links(within_node=Link(curve=["1 MB"]))}, "topology.links.within_node.curve holds 1 MB"),
        ({"links": Links(within_node=Link(curve=[[1, True]]))}, "topology.links.within_node.curve holds [1, True]"),
        ({"links": Links(within_node=Link(curve=[[1]]))}, "topology.links.within_node.curve holds [1]"),
        ({"links": Links(node_gb_per_s=0.0)}, "topology.links.node_gb_per_s=0.0"),
        ({"device": Device(copy_gb_per_s=-1.0)}, "topology.device.copy_gb_per_s=-1.0"),
        ({"device": Device(batch_us=-1.0)}, "topology.device.batch_us=-1.0"),
    ],
)
def test_what_is_not_possible_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput) as caught:
        Topology(**values)
    assert message in str(caught.value)


def test_a_node_gets_no_more_into_the_network_than_its_gpus_do() -> None:
    links = Links(between_nodes=Link(5.0))
    assert Topology(gpus_per_node=4, links=links).node_gb_per_s == 20
    links.node_gb_per_s = 12.0
    assert Topology(gpus_per_node=4, links=links).node_gb_per_s == 12
    links.node_gb_per_s = 30.0
    assert Topology(gpus_per_node=4, links=links).node_gb_per_s == 20


def load(file: Path) -> Topology:
    values = yaml.safe_load(file.read_text(encoding="utf-8"))
    assert values.pop("defaults") == ["schema", "_self_"]
    links = {name: Link(**link) for name, link in values.pop("links").items()}
    device = Device(**values.pop("device", {}))
    return Topology(**values, links=Links(**links), device=device)


def test_all_that_are_promised_are_shipped() -> None:
    plain = {"1x1", "1x2", "1x4", "1x8", "2x2", "2x4", "2x8", "4x2", "4x4", "4x8", "8x8"}
    named = {"h100_1x8", "h100_2x8", "h100_4x8", "h100_8x8", "h200_4x8", "gb200_nvl72", "gb200_2xnvl72"}
    assert {file.stem for file in SHIPPED} == plain | named


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_shipped_topologies_are_what_their_names_say(file: Path) -> None:
    topology = load(file)
    assert topology.name == file.stem
    size = re.search(r"(\d+)x(\d+)$", file.stem)
    if size:
        assert (topology.nodes, topology.gpus_per_node) == (int(size[1]), int(size[2]))
    else:
        assert (topology.nodes, topology.gpus_per_node, topology.gpus_per_host) == (1 + ("2x" in file.stem), 72, 4)
    assert topology.links.within_node.gb_per_s >= topology.links.between_nodes.gb_per_s
    assert topology.links.within_node.latency_us <= topology.links.between_nodes.latency_us
    network = {"h100": 50.0, "h200": 50.0, "gb200": 50.0}.get(file.stem.split("_")[0], 1.25)
    assert topology.links.between_nodes.gb_per_s == network
