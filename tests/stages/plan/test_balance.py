"""The busiest link of a relay plan against the fractional lower bound, and against `direct`."""

from __future__ import annotations

import faulthandler
from collections.abc import Iterator

import numpy as np
import pytest

from stages.cost import busiest_link
from stages.expert_map import EMPTY, ExpertMap
from stages.needs import needs_between
from stages.plan.policies import schedule
from stages.plan.senders import choose_senders
from stages.topology import Link, Links, Topology
from tests.stages.plan.linear_program import fractional_bound

BYTES = 10_000_000
H100 = Links(Link(349.0), Link(50.0))
HOSTS = Links(Link(2.0), Link(1.25))
UPLINK = Links(Link(349.0), Link(50.0), 160.0)


def random_maps(seed: int, layers: int, experts: int, slots: int) -> tuple[ExpertMap, ExpertMap]:
    rng = np.random.default_rng(seed)

    def one() -> ExpertMap:
        extra = rng.integers(0, experts, (layers, slots - experts))
        return rng.permuted(np.hstack([np.tile(np.arange(experts), (layers, 1)), extra]), axis=1)

    return one(), one()


def busiest(policy: str, topology: Topology, old: ExpertMap, new: ExpertMap) -> float:
    needs = needs_between(old, new, topology.ranks)
    return busiest_link(schedule(policy, needs, topology, len(old), BYTES, 3, 64).transfers, topology)[1]


@pytest.mark.parametrize(
    ("links", "rails", "experts", "slots", "seed"),
    [
        (H100, False, 256, 320, 0),
        (H100, False, 256, 320, 1),
        (H100, True, 256, 320, 0),
        (H100, True, 256, 320, 4),
        (H100, True, 128, 512, 0),
        (UPLINK, True, 256, 320, 0),
        (HOSTS, False, 128, 512, 0),
    ],
)
def test_within_one_percent_of_the_fractional_bound(
    links: Links, rails: bool, experts: int, slots: int, seed: int
) -> None:
    """On 8 x 8 GPUs over 16 layers. Hops are whole: where the bound is no whole number of them, it is rounded up."""
    topology = Topology(nodes=8, gpus_per_node=8, rails=rails, links=links)
    old, new = random_maps(seed, 16, experts, slots)
    bound = fractional_bound(needs_between(old, new, 64), topology, BYTES)
    found = busiest("relay", topology, old, new)
    hop = BYTES / 1e9 / links.between_nodes.gb_per_s
    assert bound * (1 - 1e-6) <= found <= max(bound * 1.01, np.ceil(bound / hop - 1e-6) * hop * (1 + 1e-9))


@pytest.mark.parametrize("links", [H100, HOSTS, UPLINK])
def test_better_than_direct_on_every_map(links: Links) -> None:
    topology = Topology(nodes=8, gpus_per_node=8, links=links)
    for seed in range(20):
        for experts, slots in ((256, 320), (64, 128), (128, 512)):
            old, new = random_maps(seed, 16, experts, slots)
            assert busiest("relay", topology, old, new) < busiest("direct", topology, old, new)


def flow_by_brute_force(
    begin: list[int], end: list[int], holder: list[int], ranks: int, gpus: int, node: float
) -> float:
    """The least maximum of hops out of a rank and `node` times those out of a node, over all choices."""
    best = np.inf
    choices = [range(b, e) for b, e in zip(begin, end, strict=True)]
    for pick in np.array(np.meshgrid(*choices)).T.reshape(-1, len(choices)):
        out = np.bincount([holder[i] for i in pick], minlength=ranks)
        best = min(best, max(out.max(), out.reshape(-1, gpus).sum(axis=1).max() * node))
    return best


@pytest.mark.parametrize("seed", range(30))
def test_senders_without_rails_are_the_best_there_are(seed: int) -> None:
    """Against all combinations: augmenting paths end at the optimum, not at a local one."""
    rng = np.random.default_rng(seed)
    ranks, gpus, crossings = 6, 2, 7
    holders, begin, end = [], [], []
    for _ in range(crossings):
        begin.append(len(holders))
        holders += sorted(rng.choice(ranks, rng.integers(1, 4), replace=False).tolist())
        end.append(len(holders))
    for node_seconds in (0.5, 0.8, 0.1):
        chosen = choose_senders(
            *(np.array(a) for a in (np.zeros(crossings, int), np.zeros(crossings, int), begin, end, holders)),
            ranks, gpus, False, 1.0, node_seconds, 0.0,
        )  # fmt: skip
        out = np.bincount(np.array(holders)[chosen], minlength=ranks)
        found = max(out.max(), out.reshape(-1, gpus).sum(axis=1).max() * node_seconds)
        assert found == flow_by_brute_force(begin, end, holders, ranks, gpus, node_seconds)


@pytest.fixture
def _ends() -> Iterator[None]:
    """Ends this process after a minute, with a traceback: no signal and no thread interrupts a compiled loop."""
    faulthandler.dump_traceback_later(60, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.mark.usefixtures("_ends")
@pytest.mark.parametrize(("least", "node_seconds"), [(33 * (1 - 2**-53), 0.5), (0.0, 3e6)])
def test_the_search_ends_however_the_seconds_of_links_are_rounded(least: float, node_seconds: float) -> None:
    """Where the busiest link has what must be but for the last bit, and where a node is millions of times slower."""
    count = 33
    begin = np.arange(count)
    zeros = np.zeros(count, dtype=np.int64)
    chosen = choose_senders(
        zeros, zeros + 1, begin, begin + 1, zeros, 4, 2, False, 1.0, node_seconds, least,
    )  # fmt: skip
    assert chosen.tolist() == begin.tolist()


@pytest.mark.usefixtures("_ends")
def test_what_a_rank_gets_over_two_links_may_take_as_long() -> None:
    """231 experts at 350 GB/s and 33 at 50 GB/s take the same time but for rounding, on a GPU that alone holds them."""
    near, far = 231, 33
    empty = np.full(near + far, EMPTY)
    own = np.arange(near + far)
    old = np.concatenate([own, empty, empty, empty])[None, :]
    wanted = [own, np.where(own < near, own, EMPTY), np.where(own >= near, own, EMPTY), empty]
    topology = Topology(nodes=2, gpus_per_node=2, links=Links(Link(350.0), Link(50.0)))
    needs = needs_between(old, np.concatenate(wanted)[None, :], 4)
    assert 231 * (3 / 350e9) < 33 * (3 / 50e9)
    plan = schedule("relay", needs, topology, 1, 3, 3, 64).transfers
    assert int(plan.network.sum()) >= near + far
