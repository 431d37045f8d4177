"""Updates that come to grief between real ranks: each is noticed and named, keeps every slot right, and can go on.

Nothing here waits for more than `update.timeout_seconds`. What the ranks that live hold is compared with what their
journals say, by the generator alone.
"""

from __future__ import annotations

import functools
import re
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stages.checksum_table import read_checksums
from stages.errors import BadInput, Corruption, MoesaicError
from stages.execution import read_execution
from stages.update import inventory
from stages.update.failures import RanksLost
from stages.update.put_down import plan_put_down
from tests.stages.update.cases import Case
from tests.stages.update.place import Place, assert_holds
from tests.stages.update.trouble import Trouble

RANKS = 4
CYCLES = Case(nodes=2, slots_per_rank=3, experts=12, layers=4, kind="permutation", staged=2)
"""No expert is held twice: a byte that is lost cannot be had from elsewhere."""
REPLICAS = Case(nodes=2, slots_per_rank=4, experts=10, layers=3, staged=3)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> functools.partial[Place]:
    monkeypatch.chdir(tmp_path)
    return functools.partial(Place, tmp_path, monkeypatch, ranks=RANKS)


@pytest.mark.parametrize("case", [CYCLES, REPLICAS], ids=["cycles", "replicas"])
def test_a_bit_that_flips_once_is_sent_again(place: functools.partial[Place], case: Case) -> None:
    here = place(case)
    folder = here.run(Trouble("flip", who=2, times=1))
    execution = read_execution(folder / "execution.json")
    assert (execution.resent, execution.committed) == (1, execution.batches)
    assert_holds(here.job, here.config, here.job.new, read_checksums(folder / "checksums.parquet").after)


@pytest.mark.parametrize(("what", "who"), [("flip", 2), ("wrong_expert", 1)])
@pytest.mark.parametrize("case", [CYCLES, REPLICAS, replace(CYCLES, nodes=4)], ids=["cycles", "replicas", "4 nodes"])
def test_what_always_arrives_wrong_is_never_committed(
    place: functools.partial[Place], case: Case, what: str, who: int
) -> None:
    here = place(case)
    error, holdings = here.fail(Trouble(what, who))
    assert isinstance(error, Corruption)
    here.check_the_next_run(here.check_the_stop(error, holdings, what, who))


@pytest.mark.parametrize(("committed", "landings"), [(3, {0}), (4, {-1})])
def test_what_only_staging_holds_is_put_down(
    place: functools.partial[Place], committed: int, landings: set[int]
) -> None:
    """By the network, and within the rank: a stop in the middle of a cycle, as the plan says and the bytes show."""
    here = place(CYCLES)
    batches, held = here.batches(), here.held_after(committed)
    put = plan_put_down(here.job.plan, batches, held, committed, ranks=RANKS, rows=here.budget.rows)
    assert set(put.landing.tolist()) == landings
    assert inventory.nowhere(here.job, held) == [[int(put.layer[0]), int(put.expert[0])]]
    receiver = int(here.job.plan.dst_rank[batches.stage == committed][0])
    _, holdings = here.fail(Trouble("flip", receiver, committed))
    assert holdings.committed == [committed] * RANKS
    told = np.array(holdings.physical_to_logical_map)
    changed = np.argwhere(told != held).tolist()
    assert len(changed) == 1
    assert told[tuple(changed[0])] == put.expert[0]
    assert (holdings.nowhere, holdings.wrong) == ([], [])
    here.check_the_next_run(committed)


def test_what_cannot_be_put_down_is_named(place: functools.partial[Place]) -> None:
    here = place(CYCLES)
    [[layer, expert]] = inventory.nowhere(here.job, here.held_after(3))
    error, holdings = here.fail(Trouble("nothing_arrives", None, 3))
    assert holdings.nowhere == [[layer, expert]]
    assert f"and 3 of 12 batches are; no slot holds expert {expert} of layer {layer}: the same command" in str(error)
    assert holdings.wrong == []
    here.check_the_next_run(3)


def test_ranks_that_would_run_other_batches_run_none(place: functools.partial[Place]) -> None:
    here = place(CYCLES)
    with pytest.raises(BadInput) as caught:
        here.run(Trouble("other_batches", who=2))
    assert str(caught.value) == (
        "Rank 2 has another plan than rank 0, or cuts it into other batches: nothing was moved; start all ranks with the "
        "same command, code and versions."
    )
    assert not Path("outputs").exists()
    here.check_the_next_run(0)


def test_replicas_that_disagree_are_named_before_anything_moves(place: functools.partial[Place]) -> None:
    here = place(replace(REPLICAS, experts=4, seed=3))
    error, holdings = here.fail(Trouble("disagree"))
    assert isinstance(error, Corruption)
    slot = here.job.slots_per_rank
    expert = here.job.old[1, slot]
    assert re.match(
        rf"The replicas of expert {expert} in layer 1 differ in tensor w13 before anything has moved: .*"
        rf"slot {slot} \(rank 1\) [0-9a-f]{{16}}.*; 1 experts disagree, and nothing was moved\.$",
        str(error),
    ), str(error)
    assert set(holdings.committed) == {None}
    assert np.array(holdings.physical_to_logical_map).tolist() == here.job.old.tolist()
    here.check_the_next_run(0)


@pytest.mark.parametrize(
    ("what", "committed"),
    [("kill", (1, 2)), ("kill_during", (2,)), ("kill_while_writing", (2,)), ("kill_after", (2, 3))],
)
def test_a_rank_that_is_killed_is_named_with_its_slots(
    place: functools.partial[Place], what: str, committed: tuple[int, ...]
) -> None:
    """A batch is sent while the one before is checked, and other ranks may be one batch behind."""
    here = place(replace(CYCLES, experts=24), ranks=8) if what == "kill_after" else place(CYCLES)
    error, holdings = here.fail(Trouble(what))
    assert isinstance(error, RanksLost)
    found = re.match(
        r"rank 1 was killed by SIGKILL in batch (\d) of the update; slots 3-5 of each layer are lost with it; "
        r"(\d+) of (\d+) batches are committed on all ranks: the same command goes on from there\.$",
        str(error),
    )
    assert found, str(error)
    at, first = int(found[1]), int(found[2])
    assert holdings.lost_ranks == [1]
    assert min(count or 0 for count in holdings.committed) == first
    assert holdings.committed[1] == at
    assert {at, first} <= set(committed)
    here.check_the_living(holdings, {1})
    here.check_the_next_run(first)


def test_a_rank_that_is_killed_in_the_last_batch_loses_no_other(place: functools.partial[Place]) -> None:
    here = place(CYCLES)
    last = read_execution(place(CYCLES).run() / "execution.json").batches - 1
    here.count = 1
    error, _ = here.fail(Trouble("kill_during", batch=last))
    assert f"{last} of {last + 1} batches are committed on all ranks" in str(error)
    here.check_the_next_run(last)


def test_a_rank_that_stops_is_noticed_in_time(place: functools.partial[Place]) -> None:
    here = place(CYCLES)
    here.set(timeout_seconds=2)
    began = time.monotonic()
    error, _ = here.fail(Trouble("stop", who=3))
    assert time.monotonic() - began < 30
    assert isinstance(error, RanksLost)
    found = re.match(
        r"rank \d failed in batch [0-3]: .*[Tt]imed out.*; rank 3 did not answer: last seen in batch [12]; slots 9-11 of each "
        r"layer are lost with it; ([12]) of \d+ batches are committed on all ranks: the same command goes on from there\.$",
        str(error),
    )
    assert found, str(error)
    here.set(timeout_seconds=60)
    here.check_the_next_run(int(found[1]))


def test_no_memory_for_staging(place: functools.partial[Place]) -> None:
    here = place(replace(CYCLES, layers=2))
    here.enlarge_experts(8 << 20, staging_mib=64)
    error, holdings = here.fail(Trouble("no_memory"))
    assert re.match(
        r"rank 1 failed while compiling its program: [\d,]+ bytes of staging cannot be had \(.*can't allocate memory.*\): "
        r"nothing was moved; use a smaller update\.staging_mib; nothing was moved\.$",
        str(error),
    ), str(error)
    assert holdings.lost_ranks == []
    here.check_the_living(holdings, set())


def test_no_disk_for_the_journal(place: functools.partial[Place]) -> None:
    here = place(CYCLES)
    error, holdings = here.fail(Trouble("no_disk"))
    assert re.match(
        r"rank 1 failed while compiling its program: The journal .*rank_00001\.journal cannot be written \(File too large\): "
        r"nothing was moved; make room there, or choose another folder with update\.journal; nothing was moved\.$",
        str(error),
    ), str(error)
    here.check_the_living(holdings, set())
    here.check_the_next_run(0)


def test_a_full_file_system(place: functools.partial[Place], tmp_path: Path) -> None:
    """One with room for the journals of two ranks; and none when all have failed but what they wrote is there."""
    here = place(CYCLES)
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", disk], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"this test needs to mount a small file system: {mounted.stderr.strip()}")
    try:
        here.set(journal=str(disk))
        with pytest.raises(MoesaicError) as caught:
            here.run()
        assert re.match(
            r"rank \d failed while compiling its program: The journal .*/disk/.*\.journal cannot be written "
            r"\(No space left on device\): nothing was moved; make room there, or choose another folder with update\.journal; "
            r"nothing was moved\.$",
            str(caught.value),
        ), str(caught.value)
        subprocess.run(["mount", "-o", "remount,size=64k", disk], check=True)
        here.check_the_next_run(0)
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_disk_that_fails_under_the_journal(place: functools.partial[Place]) -> None:
    here = place(CYCLES)
    error, holdings = here.fail(Trouble("no_disk_later"))
    assert re.match(
        r"rank 1 failed in batch (1|2): .*File too large.*; [12] of \d+ batches are committed on all ranks: the same command "
        r"goes on from there\.$",
        str(error),
    ), str(error)
    first = min(count or 0 for count in holdings.committed)
    here.check_the_next_run(first)
