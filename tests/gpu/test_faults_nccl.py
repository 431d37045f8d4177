"""Updates between two GPUs that come to grief, over both transports: the set of tests/stages/update/test_faults.py.

PYTHONPATH=. python -m pytest -m gpu tests/gpu/test_faults_nccl.py

What happens to a batch is queued on the GPU when its attempt is recorded; a rank dies or stops when its host learns that
a batch is committed.
"""

from __future__ import annotations

import functools
import re
import time
from dataclasses import replace
from pathlib import Path

import pytest

from stages.checksum_table import read_checksums
from stages.errors import Corruption, MoesaicError
from stages.execution import read_execution
from stages.update.failures import RanksLost
from stages.update.machine import gpus
from tests.stages.update.cases import Case
from tests.stages.update.place import Place, assert_holds
from tests.stages.update.trouble import Trouble

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(len(gpus()) < 2, reason="needs two GPUs")]

TRANSPORTS, EIGHT = ("nccl", "peer"), 8
CYCLES = Case(nodes=2, slots_per_rank=6, experts=12, layers=4, kind="permutation", staged=2)
REPLICAS = Case(nodes=1, slots_per_rank=6, experts=8, layers=3, staged=3)
ROOMY = replace(CYCLES, layers=12, staged=12)


@pytest.fixture(params=TRANSPORTS)
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> functools.partial[Place]:
    monkeypatch.chdir(tmp_path)
    return functools.partial(Place, tmp_path, monkeypatch, ranks=2, transport=request.param)


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("case", [CYCLES, REPLICAS, ROOMY], ids=["cycles", "replicas", "roomy"])
def test_a_bit_that_flips_once_is_sent_again(place: functools.partial[Place], case: Case, batch: int) -> None:
    """Also where experts wait in staging meanwhile, of which what is still on its way must leave every byte alone."""
    here = place(case)
    if batch >= len(here.batches()):
        pytest.skip("there are not so many batches")
    execution = read_execution(here.run(Trouble("flip", batch=batch, times=1)) / "execution.json")
    assert execution.resent <= 1  # none where nothing arrives from this batch on
    assert execution.committed == execution.batches
    after = read_checksums(here.folder / "run1" / "checksums.parquet").after
    assert_holds(here.job, here.config, here.job.new, after)


@pytest.mark.parametrize(("what", "who"), [("flip", 0), ("flip", 1), ("wrong_expert", 1)])
@pytest.mark.parametrize("case", [CYCLES, REPLICAS, ROOMY], ids=["cycles", "replicas", "roomy"])
def test_what_always_arrives_wrong_is_never_committed(
    place: functools.partial[Place], case: Case, what: str, who: int
) -> None:
    here = place(case)
    error, holdings = here.fail(Trouble(what, who))
    assert isinstance(error, Corruption)
    here.check_the_next_run(here.check_the_stop(error, holdings, what, who))


@pytest.mark.parametrize("batch", [3, 4, 5, 6])
def test_what_only_staging_holds_is_put_down(place: functools.partial[Place], batch: int) -> None:
    here = place(CYCLES)
    error, holdings = here.fail(Trouble("flip", None, batch))
    assert isinstance(error, Corruption)
    assert (holdings.nowhere, holdings.wrong) == ([], [])
    assert holdings.checked > 0
    here.check_the_next_run(int(holdings.committed[0] or 0))


def test_replicas_that_disagree_are_named_before_anything_moves(place: functools.partial[Place]) -> None:
    here = place(replace(REPLICAS, experts=3))
    error, holdings = here.fail(Trouble("disagree"))
    assert isinstance(error, Corruption)
    assert re.match(
        r"The replicas of expert \d in layer 1 differ in tensor w13 before anything has moved: ", str(error)
    )
    assert holdings.physical_to_logical_map == here.job.old.tolist()
    here.check_the_next_run(0)


def test_a_rank_that_is_killed_is_named_with_its_slots(place: functools.partial[Place]) -> None:
    here = place(CYCLES)
    error, holdings = here.fail(Trouble("kill_after", batch=3))
    assert isinstance(error, RanksLost)
    found = re.match(
        r"rank 1 was killed by SIGKILL in batch 4 of the update; slots 6-11 of each layer are lost with it; (\d+) of \d+ "
        r"batches are committed on all ranks: the same command goes on from there\.$",
        str(error),
    )
    assert found, str(error)
    assert holdings.lost_ranks == [1]
    here.check_the_next_run(int(found[1]))


def test_a_rank_that_stops_is_noticed_in_time(place: functools.partial[Place]) -> None:
    here = place(CYCLES)
    here.set(timeout_seconds=10)
    began = time.monotonic()
    error, holdings = here.fail(Trouble("stop_after", batch=3))
    assert time.monotonic() - began < 120
    assert "rank 1 did not answer" in str(error), str(error)
    assert isinstance(error, RanksLost)
    assert holdings.lost_ranks == [1]
    here.set(timeout_seconds=60)
    here.check_the_next_run(min(count or 0 for count in holdings.committed))


def test_no_memory_for_staging(place: functools.partial[Place]) -> None:
    here = place(replace(CYCLES, layers=2))
    here.enlarge_experts(32 << 20, staging_mib=512)
    error, holdings = here.fail(Trouble("no_gpu_memory"))
    assert re.match(
        r"rank 1 failed while compiling its program: [\d,]+ bytes of staging cannot be had \(.*(?:out of memory|ncclMemAlloc failed).*\): nothing was "
        r"moved; use a smaller update\.staging_mib; nothing was moved\.$",
        str(error),
    ), str(error)
    assert holdings.lost_ranks == []
    here.check_the_next_run(0)


@pytest.mark.parametrize(
    ("what", "where"), [("no_disk", "while compiling its program"), ("no_disk_later", "in batch 2")]
)
def test_no_disk_for_the_journal(place: functools.partial[Place], what: str, where: str) -> None:
    here = place(CYCLES)
    error, holdings = here.fail(Trouble(what))
    assert isinstance(error, MoesaicError)
    assert str(error).startswith(f"rank 1 failed {where}: "), str(error)
    assert "File too large" in str(error)
    here.check_the_next_run(min(count or 0 for count in holdings.committed))


@pytest.fixture(params=TRANSPORTS)
def wide(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A rank on each of four GPUs or more; on fewer, eight ranks that share them. Two nodes, relays included."""
    shared = len(gpus()) < 4
    if shared and request.param == "peer":
        pytest.skip("needs four GPUs")
    monkeypatch.chdir(tmp_path)
    case = Case(nodes=2, slots_per_rank=3, experts=11, layers=6, kind="random", rows="planned relay", staged=4)
    here = Place(tmp_path, monkeypatch, case, EIGHT if shared else len(gpus()), transport=request.param)
    here.set(oversubscribe=shared)
    return here


def test_a_bit_that_flips_once_among_many_ranks(wide: Place) -> None:
    execution = read_execution(wide.run(Trouble("flip", batch=2, times=1)) / "execution.json")
    assert execution.resent == 1
    after = read_checksums(wide.folder / "run1" / "checksums.parquet").after
    assert_holds(wide.job, wide.config, wide.job.new, after)


def test_a_bit_that_always_flips_among_many_ranks(wide: Place) -> None:
    error, holdings = wide.fail(Trouble("flip", 1))
    assert isinstance(error, Corruption)
    wide.check_the_next_run(wide.check_the_stop(error, holdings, "flip", 1))


def test_a_rank_of_many_that_is_killed(wide: Place) -> None:
    error, holdings = wide.fail(Trouble("kill_after", batch=2))
    assert isinstance(error, RanksLost)
    assert re.match(r"rank 1 was killed by SIGKILL in batch 3 of the update; slots 3-5 ", str(error)), str(error)
    assert holdings.lost_ranks == [1]
    wide.check_the_next_run(min(count or 0 for count in holdings.committed))
