"""Updates that come to grief between real ranks: each is noticed and named, keeps every slot right, and can go on.

Nothing here waits for more than `update.timeout_seconds`. What the ranks that live hold is compared with what their
journals say, by the generator alone.
"""

from __future__ import annotations

import functools
import json
import multiprocessing
import re
import subprocess
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from stages.batches import Batches, reached
from stages.checksum_table import read_checksums
from stages.contract import silent
from stages.errors import BadInput, Corruption, MoesaicError
from stages.execution import read_execution
from stages.expert_map import EMPTY, ExpertMap
from stages.holdings import Holdings, read_holdings
from stages.model import TensorSpec
from stages.placement import Placement, write_placement
from stages.synthetic import truth
from stages.transfers import write_transfers
from stages.update import inventory, worker
from stages.update.config import UpdateStageConfig
from stages.update.failures import RanksLost
from stages.update.job import Job
from stages.update.pipelined import batches_of, steps_of
from stages.update.put_down import plan_put_down
from stages.update.stage import update
from stages.update.staging import Budget
from tests.stages.update.cases import TENSORS, Case, config_of, job_of
from tests.stages.update.trouble import Trouble, troubled_update

RANKS = 4
CYCLES = Case(nodes=2, slots_per_rank=3, experts=12, layers=4, kind="permutation", staged=2)
"""No expert is held twice: a byte that is lost cannot be had from elsewhere."""
REPLICAS = Case(nodes=2, slots_per_rank=4, experts=10, layers=3, staged=3)


@dataclass
class Place:
    """Where updates of one job run, one after the other, as `moesaic run` would run them."""

    folder: Path
    monkeypatch: pytest.MonkeyPatch
    case: Case
    ranks: int = RANKS

    def __post_init__(self) -> None:
        self.job = job_of(self.case, self.ranks)
        self.config = config_of(self.case, self.ranks)
        write_placement(self.folder, Placement(self.job.new, self.job.old, self.case.experts))
        write_transfers(self.folder, self.job.plan)
        self.count = 0

    def run(self, trouble: Trouble | None = None) -> Path:
        """The folder of one update; raises what it raises."""
        self.count += 1
        folder, self.left = self.folder / f"run{self.count}", self.folder / f"left{self.count}"
        folder.mkdir()
        self.left.mkdir()
        inputs = {"placement": self.folder / "placement.safetensors", "transfers": self.folder / "transfers.parquet"}
        with self.monkeypatch.context() as patch:
            if trouble is not None:
                entry = functools.partial(troubled_update, trouble=trouble, left=self.left)
                patch.setattr(worker, "save_update", entry)
            update(self.config, inputs, folder, silent)
        return folder

    def fail(self, trouble: Trouble) -> tuple[MoesaicError, Holdings]:
        """What a troubled update raises, and its journal; all ranks have gone."""
        with pytest.raises(MoesaicError) as caught:
            self.run(trouble)
        assert multiprocessing.active_children() == []
        error = caught.value
        assert "\n" not in str(error)
        assert error.result is not None
        assert "journal.json" in error.result.files
        return error, read_holdings(self.folder / f"run{self.count}" / "journal.json")

    def batches(self) -> Batches:
        return batches_of(self.job, self.budget, steps_of(self.job.layers, None))

    @property
    def budget(self) -> Budget:
        return self.config.staging_budget("gloo", self.job.most_arrivals())

    def held_after(self, committed: int) -> ExpertMap:
        return reached(self.job.plan, self.batches(), self.job.old, committed)

    def check_the_living(self, holdings: Holdings, dead: set[int]) -> None:
        """Ranks that outlived the trouble hold, byte for byte, what their journals say, and so does journal.json."""
        files = {int(file.stem): np.load(file) for file in self.left.glob("*.npy")}
        assert set(files) == set(range(self.ranks)) - dead
        per_rank = self.job.slots_per_rank
        told = np.array(holdings.physical_to_logical_map)
        for rank, found in files.items():
            own = slice(rank * per_rank, (rank + 1) * per_rank)
            held = self.held_after(holdings.committed[rank] or 0)[:, own]
            assert_holds(self.job, self.config, held, found)
            assert np.array_equal(told[:, own], held)
        for rank in dead:
            assert (told[:, rank * per_rank : (rank + 1) * per_rank] == EMPTY).all()

    def check_the_next_run(self, first: int) -> None:
        """It runs the batches from `first` on, no more and no less, and every slot is right in the end."""
        folder = self.run()
        execution = read_execution(folder / "execution.json")
        assert (execution.first, execution.committed) == (first, execution.batches)
        events = json.loads((folder / "trace.json").read_text())["traceEvents"]
        ran = {int(found[1]) for event in events if (found := re.fullmatch(r"commit batch (\d+)", event["name"]))}
        assert ran == set(range(first, execution.batches))
        assert_holds(self.job, self.config, self.job.new, read_checksums(folder / "checksums.parquet").after)
        assert not (folder / "journal.json").exists()
        assert list(Path(str(self.config.update.journal)).glob("*/*")) == []


def assert_holds(job: Job, config: UpdateStageConfig, held: ExpertMap, found: np.ndarray) -> None:
    """`found` `[L, n, K]` are the checksums of the experts `held` `[L, n]`, by the generator."""
    layer, slot = np.nonzero(held != EMPTY)
    assert np.array_equal(found[layer, slot], truth(config.model.tensors, config.seed, layer, held[layer, slot]))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> functools.partial[Place]:
    monkeypatch.chdir(tmp_path)
    return functools.partial(Place, tmp_path, monkeypatch)


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
    found = re.match(
        r"Expert (\d+) of layer (\d) arrived wrong at rank (\d) from rank (\d) each time it was sent \(3 times\): tensor "
        r"(\w+) should be [0-9a-f]{16}, found [0-9a-f]{16}.*; nothing wrong was committed, and (\d+) of (\d+) batches "
        r"are: the same command goes on from there\.$",
        str(error),
    )
    assert found, str(error)
    expert, layer, receiver, sender, tensor, committed, batches = found.groups()
    assert (receiver if what == "flip" else sender) == str(who)
    assert tensor in {spec.name for spec in TENSORS}
    assert int(expert) in here.job.new[int(layer), int(receiver) * here.job.slots_per_rank :]
    assert 2 <= int(committed) < int(batches)

    assert holdings.committed == [int(committed)] * RANKS
    assert (holdings.batches, holdings.lost_ranks, holdings.nowhere, holdings.wrong) == (int(batches), [], [], [])
    held = np.array(holdings.physical_to_logical_map)
    assert holdings.checked == (held != EMPTY).sum() * len(TENSORS)
    after = read_checksums(here.folder / "run1" / "checksums.parquet").after
    known = here.job.new != EMPTY  # what the table keeps
    assert_holds(here.job, here.config, np.where(known, held, EMPTY), after)
    for before, now in zip(here.job.old.tolist(), held.tolist(), strict=True):
        assert set(before) <= {EMPTY, *now}, "an expert is held nowhere"
    here.check_the_next_run(int(committed))


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
    here = place(replace(CYCLES, experts=24), 8) if what == "kill_after" else place(CYCLES)
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
    here.config = replace(here.config, update=replace(here.config.update, timeout_seconds=2))
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
    here.config = replace(here.config, update=replace(here.config.update, timeout_seconds=60))
    here.check_the_next_run(int(found[1]))


def test_no_memory_for_staging(place: functools.partial[Place]) -> None:
    here = place(replace(CYCLES, layers=2))
    tensors = [TensorSpec("weight", [8 << 20], "uint8")]
    model = replace(here.config.model, tensors=tensors)
    here.config = replace(here.config, model=model, update=replace(here.config.update, staging_mib=64))
    here.job = replace(here.job, plan=replace(here.job.plan, bytes=np.full_like(here.job.plan.bytes, 8 << 20)))
    write_transfers(here.folder, here.job.plan)
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
        here.config = replace(here.config, update=replace(here.config.update, journal=str(disk)))
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
