"""Updates over NCCL, and that a GPU hashes and fills as a CPU does.

PYTHONPATH=. python -m pytest -m gpu tests/gpu/test_update_nccl.py

With two GPUs or more the ranks have one each; in any case several ranks also share GPUs, over sockets.
"""

from __future__ import annotations

import multiprocessing
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from stages.checksum_table import read_checksums
from stages.contract import silent
from stages.errors import MoesaicError
from stages.execution import read_execution
from stages.model import ITEMSIZE, TensorSpec
from stages.placement import Placement, write_placement
from stages.synthetic import fill, truth
from stages.transfers import write_transfers
from stages.update.config import UpdateOptions
from stages.update.launch import launch
from stages.update.machine import gpus
from stages.update.stage import update
from tests.stages.update.cases import TENSORS, Case, config_of, job_of, maps_of
from tests.stages.update.rank_entries import run_cases, spoil

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not gpus(), reason="needs a GPU")]

SEATS = [pytest.param(2, False, id="a GPU each", marks=pytest.mark.skipif(len(gpus()) < 2, reason="needs two GPUs"))]
SEATS += [pytest.param(4, True, id="shared GPUs")]
if len(gpus()) > 2:
    SEATS.append(pytest.param(len(gpus()), False, id="all GPUs"))
CASES = [
    Case(nodes=1, slots_per_rank=6, experts=10),
    Case(nodes=2, slots_per_rank=4, experts=8, kind="permutation", layers=6),
    Case(nodes=2, slots_per_rank=6, experts=9, kind="empty"),
    Case(nodes=2, slots_per_rank=6, experts=9, kind="empty", rows="rows"),
    Case(nodes=2, slots_per_rank=5, experts=10, rows="relay"),
]
TRANSPORTS = ("nccl", "peer")
EIGHT = 8
OF_EIGHT = [
    Case(nodes=nodes, slots_per_rank=3, experts=experts, kind=kind, rows=rows)
    for nodes in (1, 2, 4)
    for experts, kind, rows in (
        (16, "random", "relay"),
        (24, "permutation", "api"),
        (18, "empty", "planned relay"),
        (18, "empty", "planned direct"),
    )
]
SHAPES = [[1], [3], [5], [1024], [1023], [4096], [64, 1025], [7, 13, 11], [3, 700_001]]


@pytest.mark.parametrize("dtype", ITEMSIZE)
def test_gpu_hashes_and_fills_as_the_cpu_does(dtype: str) -> None:
    import torch

    from stages.checksum import checksum_rows

    layers, experts = np.array([0, 3, 91]), np.array([5, 0, 255])
    for shape in SHAPES:
        spec = TensorSpec("t", shape, dtype)
        assert spec.nbytes <= 20 << 20
        filled = {}
        for device in ("cpu", "cuda"):
            rows = torch.empty((3, *shape), dtype=getattr(torch, dtype), device=device)
            fill(rows, 11, layers, experts, 2)
            filled[device] = rows
        on_cpu = [rows.cpu().view(3, -1).view(torch.uint8) for rows in filled.values()]
        assert torch.equal(*on_cpu), f"{dtype} {shape}: the GPU fills other bytes"
        hashes = {device: checksum_rows(rows) for device, rows in filled.items()}
        assert np.array_equal(hashes["cpu"], hashes["cuda"]), f"{dtype} {shape}: {hashes}"
        assert np.array_equal(truth([spec], 4, layers, experts), truth([spec], 4, layers, experts, "cuda")), shape


@pytest.mark.parametrize(("ranks", "shared"), SEATS)
def test_every_slot_holds_its_expert(ranks: int, shared: bool, tmp_path: Path) -> None:
    launch(run_cases, (CASES, tmp_path / "compared"), ranks, backend="nccl", oversubscribe=shared)
    filled = sum(int((m >= 0).sum()) for case in CASES for m in maps_of(case, ranks))
    assert int((tmp_path / "compared").read_text()) == filled * len(TENSORS)


@pytest.mark.parametrize("ranks", [seat.values[0] for seat in SEATS if not seat.values[1]])
@pytest.mark.skipif(len(gpus()) < 2, reason="needs two GPUs")
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("verify", [True, False], ids=["verified", "unverified"])
def test_every_slot_holds_its_expert_pipelined(
    ranks: int, transport: str, verify: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With staging for two experts, for three, and for more than there are."""
    monkeypatch.chdir(tmp_path)
    cases = [replace(case, staged=staged) for case in CASES for staged in (2, 3, 40)]
    entry = partial(run_cases, transport=transport, verify_before_commit=verify)
    launch(entry, (cases, tmp_path / "compared"), ranks, backend="nccl")
    filled = sum(int((m >= 0).sum()) for case in cases for m in maps_of(case, ranks))
    assert int((tmp_path / "compared").read_text()) == filled * len(TENSORS)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("nodes", [1, 2, 4])
def test_eight_ranks(transport: str, nodes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Experts go by way of other ranks, too. Where there are fewer GPUs, ranks share them, each a host of its own to NCCL."""
    shared = len(gpus()) < EIGHT
    if shared and transport == "peer":
        pytest.skip("needs eight GPUs")
    monkeypatch.chdir(tmp_path)
    cases = [replace(case, staged=staged) for case in OF_EIGHT if case.nodes == nodes for staged in (None, 2, 8)]
    entry = partial(run_cases, oversubscribe=shared, transport=transport)
    launch(entry, (cases, tmp_path / "compared"), EIGHT, backend="nccl", oversubscribe=shared, timeout_seconds=300)
    filled = sum(int((m >= 0).sum()) for case in cases for m in maps_of(case, EIGHT))
    assert int((tmp_path / "compared").read_text()) == filled * len(TENSORS)


@pytest.mark.parametrize(("ranks", "shared"), SEATS)
def test_the_stage_on_nccl(ranks: int, shared: bool, tmp_path: Path) -> None:
    case = Case(nodes=2, slots_per_rank=6, experts=11, layers=5)
    job, config = job_of(case, ranks), config_of(case, ranks)
    config.update = UpdateOptions(oversubscribe=shared, link_mib=8)
    assert config.environment()["backend"] == "nccl"
    write_placement(tmp_path, Placement(job.new, job.old, case.experts))
    write_transfers(tmp_path, job.plan)
    inputs = {"placement": tmp_path / "placement.safetensors", "transfers": tmp_path / "transfers.parquet"}
    result = update(config, inputs, tmp_path, silent)

    execution = read_execution(tmp_path / "execution.json")
    print(dict(result.metrics), dict(result.tags))
    assert (execution.backend, execution.device) == ("nccl", gpus()[0].name)
    assert execution.nccl
    assert execution.received_bytes == job.received_bytes().tolist()
    table = read_checksums(tmp_path / "checksums.parquet")
    layer, slot = np.nonzero(job.new >= 0)
    assert np.array_equal(table.after[layer, slot], truth(TENSORS, case.seed, layer, job.new[layer, slot]))


@pytest.mark.parametrize(("ranks", "shared"), SEATS)
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("SIGKILL", "rank 1 was killed by SIGKILL in layer 4 of the update"),
        ("raise", "rank 1 failed in layer 4: RuntimeError: the weights are gone"),
    ],
)
def test_one_rank_in_trouble_stops_all_before_any_timeout(ranks: int, shared: bool, how: str, message: str) -> None:
    case = Case(nodes=2, slots_per_rank=6, experts=11, layers=6)
    arguments = (config_of(case, ranks), job_of(case, ranks), how, 1, 4)
    with pytest.raises(MoesaicError) as caught:
        launch(spoil, arguments, ranks, backend="nccl", oversubscribe=shared, timeout_seconds=3600)
    assert str(caught.value) == message, "".join(caught.value.__notes__)
    assert multiprocessing.active_children() == []
