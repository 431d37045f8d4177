"""Where updates of one job run, one after the other, with and without trouble. Needs no more than the stage itself does,
so that GPU tests can use it too."""

from __future__ import annotations

import functools
import json
import multiprocessing
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from stages.batches import Batches, reached
from stages.checksum_table import read_checksums
from stages.contract import silent
from stages.errors import MoesaicError
from stages.execution import read_execution
from stages.expert_map import EMPTY, ExpertMap
from stages.holdings import Holdings, read_holdings
from stages.model import TensorSpec
from stages.placement import Placement, write_placement
from stages.staging import Budget
from stages.synthetic import truth
from stages.transfers import write_transfers
from stages.update import worker
from stages.update.config import UpdateStageConfig
from stages.update.job import Job
from stages.update.pipelined import batches_of, steps_of
from stages.update.stage import update
from tests.stages.update.cases import TENSORS, Case, config_of, job_of
from tests.stages.update.trouble import Trouble, troubled_update


@dataclass
class Place:
    """As `moesaic run` would run them. `transport`: of the GPUs; auto: whatever is there."""

    folder: Path
    monkeypatch: pytest.MonkeyPatch
    case: Case
    ranks: int
    transport: str = "auto"

    def __post_init__(self) -> None:
        self.job = job_of(self.case, self.ranks)
        self.config = config_of(self.case, self.ranks)
        self.set(transport=self.transport)
        write_placement(self.folder, Placement(self.job.new, self.job.old, self.case.experts))
        write_transfers(self.folder, self.job.plan)
        self.count = 0

    def set(self, **options: object) -> None:
        """Change options of the update."""
        self.config = replace(self.config, update=replace(self.config.update, **options))

    def enlarge_experts(self, nbytes: int, staging_mib: float) -> None:
        """Give experts one tensor of so many bytes."""
        model = replace(self.config.model, tensors=[TensorSpec("weight", [nbytes], "uint8")])
        self.config = replace(self.config, model=model)
        self.set(staging_mib=staging_mib)
        plan = self.job.plan
        self.job = replace(self.job, plan=replace(plan, bytes=np.full_like(plan.bytes, nbytes)))
        write_transfers(self.folder, self.job.plan)

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
        return batches_of(self.job, self.budget, steps_of(self.job.layers, None), self.config.topology.gpus_per_node)

    @property
    def budget(self) -> Budget:
        return self.config.staging_budget(self.config.machine().transport, self.job.most_arrivals())

    def held_after(self, committed: int) -> ExpertMap:
        return reached(self.job.plan, self.batches(), self.job.old, committed)

    def check_the_stop(self, error: MoesaicError, holdings: Holdings, what: str, who: int) -> int:
        """A clean stop: `who` (for `flip` it received, else it sent) is named, journal and bytes say the same, and no
        expert is lost. How many batches are committed."""
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
        assert int(expert) in self.job.new[int(layer), int(receiver) * self.job.slots_per_rank :]
        assert 2 <= int(committed) < int(batches)

        assert holdings.committed == [int(committed)] * self.ranks
        assert (holdings.batches, holdings.lost_ranks, holdings.nowhere, holdings.wrong) == (int(batches), [], [], [])
        held = np.array(holdings.physical_to_logical_map)
        assert holdings.checked == (held != EMPTY).sum() * len(TENSORS)
        after = read_checksums(self.folder / f"run{self.count}" / "checksums.parquet").after
        known = self.job.new != EMPTY  # what the table keeps
        assert_holds(self.job, self.config, np.where(known, held, EMPTY), after)
        for before, now in zip(self.job.old.tolist(), held.tolist(), strict=True):
            assert set(before) <= {EMPTY, *now}, "an expert is held nowhere"
        return int(committed)

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
