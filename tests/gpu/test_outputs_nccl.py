"""The functional proof and weights from files on GPUs: the same bits as on a CPU, and the same verdicts.

PYTHONPATH=. python -m pytest -m gpu tests/gpu/test_outputs_nccl.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stages.contract import silent
from stages.functional import from_json, read_functional
from stages.placement import Placement, write_placement
from stages.transfers import write_transfers
from stages.update.config import UpdateOptions
from stages.update.launch import launch
from stages.update.machine import gpus
from stages.update.stage import update
from tests.stages.update.cases import TENSORS, Case, config_of, job_of
from tests.stages.update.experts import KINDS, expert

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not gpus(), reason="needs a GPU")]


@pytest.mark.parametrize("kind", [*KINDS, "ring"])
def test_a_gpu_computes_the_bits_that_a_cpu_does(kind: str) -> None:
    import torch

    from stages.update.arithmetic import GatedMlp, Ring
    from stages.update.quantisation import read_layout

    specs = KINDS.get(kind, TENSORS)
    layout = read_layout(specs)
    way = Ring(specs, 3) if layout is None else GatedMlp(layout, 3)
    tensors = expert(specs)
    for tokens in (np.arange(1), np.arange(5), np.arange(40)):
        on_cpu = way.outputs(tensors, tokens)
        on_gpu = way.outputs([tensor.cuda() for tensor in tensors], tokens)
        assert torch.equal(on_cpu.view(torch.int64), on_gpu.cpu().view(torch.int64))


def test_an_update_over_nccl_is_proven(tmp_path: Path) -> None:
    case, ranks = Case(nodes=2, slots_per_rank=6, experts=11, layers=5), 4
    job, config = job_of(case, ranks), config_of(case, ranks)
    config.update = UpdateOptions(oversubscribe=True, link_mib=8, functional=True, save="shards")
    write_placement(tmp_path, Placement(job.new, job.old, case.experts))
    write_transfers(tmp_path, job.plan)
    inputs = {"placement": tmp_path / "placement.safetensors", "transfers": tmp_path / "transfers.parquet"}
    folder = tmp_path / "update"
    folder.mkdir()
    update(config, inputs, folder, silent)
    proof = read_functional(folder / "functional.json")
    assert proof.before == proof.after
    assert len(proof.before) == case.layers


@pytest.mark.parametrize("mishap", ["none", "scales stay", "one bit of one scale"])
def test_weights_from_files_are_proven_or_not(mishap: str, tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    from tests.stages import checkpoints
    from tests.stages.update.rank_entries import prove
    from tests.stages.update.test_outputs import from_files

    config, job = from_files(checkpoints.deepseek_fp8(tmp_path / "files"), 4)
    launch(prove, (config, job, mishap, tmp_path / "proof"), 4, backend="nccl", oversubscribe=True)
    proof = from_json((tmp_path / "proof").read_bytes())
    assert proof.arithmetic.startswith("the experts' gated MLP")
    assert [was == now for was, now in zip(proof.before, proof.after, strict=True)] == [True, True, mishap == "none"]
