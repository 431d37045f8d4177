"""Links and devices measured between real ranks on the CPU, and what is made of the times."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest

from stages.errors import BadInput
from stages.topology import Floats, Topology
from stages.update import calibrate as module
from stages.update.calibrate import MANY_MESSAGES, calibrate, link_of
from stages.update.calibrate_executors import Probe, fit
from stages.update.launch import launch
from tests.stages.update.rank_entries import found_overheads


def test_a_link_from_times_that_follow_a_line() -> None:
    """100 us before anything moves, 5 us a message, 10 GB/s."""
    sizes = [1 << power for power in range(14, 31, 2)]
    times = [(size, 105e-6 + size / 10e9) for size in sizes]
    link = link_of(times, 100e-6 + MANY_MESSAGES * 5e-6 + sizes[0] / 10e9)
    assert link.latency_us == pytest.approx(5.0, abs=0.01)
    assert link.gb_per_s == pytest.approx(10.0, rel=0.01)
    for size, seconds in times:
        assert float(link.seconds(size)) == pytest.approx(seconds, rel=1e-3)
    assert float(link.seconds(3 << 20, 8)) == pytest.approx(100e-6 + 8 * 5e-6 + (3 << 20) / 10e9, rel=1e-3)
    link.check("topology.links.within_node")


def test_what_took_longer_than_something_larger_was_disturbed() -> None:
    link = link_of([(1 << 14, 9.0), (1 << 16, 1e-3), (1 << 18, 2e-3)], 1e-3)
    assert link.latency_us == 0
    assert float(link.seconds(1 << 14)) == pytest.approx(1e-3)
    assert link.curve[-1][1] == 1.0


@pytest.mark.slow
@pytest.mark.parametrize(("nodes", "gpus_per_node"), [(2, 2), (1, 2), (2, 1)])
def test_ranks_of_this_machine(nodes: int, gpus_per_node: int) -> None:
    found = calibrate("here", nodes, gpus_per_node, "gloo")
    assert found is not None
    topology = found.topology
    assert (topology.name, topology.nodes, topology.gpus_per_node) == ("here", nodes, gpus_per_node)
    assert (found.backend, found.hosts) == ("gloo", 1)
    Topology(**{key: getattr(topology, key) for key in ("name", "nodes", "gpus_per_node", "links", "device")})
    for link in (topology.links.within_node, topology.links.between_nodes):
        assert 0.01 < link.gb_per_s < 1000
        assert [size for size, _ in link.curve] == sorted(size for size, _ in link.curve)
        assert len(link.curve) > 3
    if 1 in (nodes, gpus_per_node):
        assert asdict(topology.links.within_node) == asdict(topology.links.between_nodes)
    assert topology.device.layer_us > 1
    assert topology.device.copy_gb_per_s > 0.05


def test_what_cannot_be_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput, match="at least two ranks are needed"):
        calibrate("x", 1, 1, "gloo")
    monkeypatch.setattr(module.machine, "gpus", list)
    with pytest.raises(BadInput, match=r"update\.backend=nccl is not possible"):
        calibrate("x", 1, 2, "nccl")


def test_overheads_that_explain_the_times() -> None:
    bare, parts, messages = np.array([0.01, 0.02, 0.005]), np.array([6.0, 10.0, 3.0]), np.array([1e2, 9e2, 4e2])

    def added(part: float, message: float) -> Floats:
        return bare + 1e-6 * (part * parts + message * messages)

    def ahead(part: float, message: float) -> Floats:
        return np.maximum(bare, 1e-6 * (part * parts + message * messages))

    assert fit(added(200, 30), added) == pytest.approx((200, 30), rel=1e-3)
    part, message = fit(added(200, 0) - 1e-7 * messages, added)
    assert part == pytest.approx(200, rel=0.05)
    assert message == pytest.approx(0, abs=0.1)
    assert fit(bare / 2, added) == pytest.approx((0, 0), abs=0.1)
    assert fit(ahead(4000, 90), ahead) == pytest.approx((4000, 90), rel=1e-3)


def test_a_share_of_the_link_that_explains_the_times() -> None:
    """Of five updates two are held up by the host, three by the link."""
    moving, parts, messages = np.array([1, 1, 30, 40, 50]) * 1e-3, np.full(5, 6.0), np.array([2e3, 4e3, 50, 80, 90])

    def slower(part: float, message: float, share: float) -> Floats:
        return np.maximum(moving / share, 1e-6 * (part * parts + message * messages))

    assert fit(slower(900, 10, 0.55), slower, share=True) == pytest.approx((900, 10, 0.55), rel=0.01)
    assert fit(slower(900, 10, 1.0), slower, share=True)[2] == pytest.approx(1, abs=1e-3)


def test_executors_are_taken_apart_by_the_cost_model() -> None:
    """Over gloo too, where `calibrate` leaves it at what the links show."""
    launch(found_overheads, (Probe(2, 4, (1 << 16, 1 << 12)), Probe(3, 6, (1 << 14,))), 2, backend="gloo")
