"""The config of the update stage: what is refused, what makes up its key, and what this machine can run."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import pytest

from stages.errors import BadInput
from stages.model import ModelSpec, TensorSpec
from stages.topology import Topology
from stages.update import machine
from stages.update.config import UpdateOptions, UpdateStageConfig
from stages.update.machine import Gpu
from stages.update.memory import check_memory, rank_bytes
from stages.update.seat import find_seat, first_host
from tests.stages import checkpoints

SPECS = [TensorSpec("w", [64, 32], "bfloat16"), TensorSpec("s", [4], "float32")]
TORCHRUN = {
    "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "GROUP_WORLD_SIZE": "2",
    "MASTER_ADDR": "node-a", "MASTER_PORT": "1234", "TORCHELASTIC_USE_AGENT_STORE": "True",
}  # fmt: skip
SLURM = {
    "SLURM_JOB_ID": "77", "SLURM_STEP_ID": "0", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NTASKS": "9",
    "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_NODELIST": "gpu[03-04]",
}  # fmt: skip


@pytest.fixture(autouse=True)
def started_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in {*TORCHRUN, *SLURM, "SLURM_NNODES", "SLURM_JOB_NODELIST"}:
        monkeypatch.delenv(name, raising=False)


def config(**options: object) -> UpdateStageConfig:
    return UpdateStageConfig(UpdateOptions(**options), ModelSpec(tensors=SPECS), Topology(nodes=2, gpus_per_node=4))


def with_gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(machine, "gpus", lambda: [Gpu("H100", 80 * 10**9)] * count)
    monkeypatch.setattr(machine, "nccl_version", lambda: "2.28.9")
    monkeypatch.setattr(machine, "_reach_each_other", lambda count: True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"executor": "magic"}, "update.executor=magic is not known; allowed are pipelined, reference."),
        ({"transport": "pigeon"}, "update.transport=pigeon is not known; allowed are auto, nccl, peer."),
        ({"retries": -1}, "update.retries=-1 must not be negative."),
        ({"staging_mib": 0}, "update.staging_mib=0 is not possible: it must be above 0."),
        ({"backend": "mpi"}, "update.backend=mpi is not known; allowed are auto, gloo, nccl."),
        ({"ranks": "some"}, "update.ranks=some is not known; allowed are auto, local, attached."),
        ({"weights": "mine"}, "update.weights=mine is not known; allowed are synthetic, safetensors, shards."),
        (
            {"weights_path": "/w"},
            "update.weights_path=/w is not read with update.weights=synthetic; it is with safetensors or shards.",
        ),
        ({"save": "pickle"}, "update.save=pickle is not known; allowed are null, shards."),
        ({"weights": "safetensors"}, "update.weights=safetensors needs update.weights_path: the folder of the files."),
        ({"timeout_seconds": 0.0}, "update.timeout_seconds=0.0 is not possible: it must be above 0 and below 1e+06."),
        (
            {"timeout_seconds": float("inf")},
            "update.timeout_seconds=inf is not possible: it must be above 0 and below 1e+06.",
        ),
        ({"link_mib": 0}, "update.link_mib=0 is not possible: it must be at least 1."),
    ],
)
def test_wrong_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(BadInput) as caught:
        UpdateOptions(**options)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("gpus", "options", "backend"),
    [
        (0, {}, "gloo"),
        (4, {}, "gloo"),
        (8, {}, "nccl"),
        (1, {"oversubscribe": True}, "nccl"),
        (0, {"oversubscribe": True}, "gloo"),
        (8, {"backend": "gloo"}, "gloo"),
        (1, {"backend": "nccl", "oversubscribe": True}, "nccl"),
    ],
)
def test_backend_follows_the_gpus(
    gpus: int, options: dict[str, object], backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_gpus(monkeypatch, gpus)
    facts = config(**options).environment()
    assert facts["backend"] == backend
    assert (facts["device"], facts["nccl"]) == (("H100", "2.28.9") if backend == "nccl" else (machine.cpu_name(), None))
    assert facts["hosts"] == 1


@pytest.mark.parametrize(
    ("gpus", "message"),
    [
        (0, "0 GPUs, the topology asks for 8 ranks here: use update.backend=gloo."),
        (1, "1 GPU, the topology asks for 8 ranks here: use update.backend=gloo, {}, or update.oversubscribe=true."),
    ],
)
def test_too_few_gpus_for_nccl(gpus: int, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(monkeypatch, gpus)
    with pytest.raises(BadInput) as caught:
        config(backend="nccl").environment()
    expected = "update.backend=nccl is not possible: this machine has " + message.format("a smaller topology")
    assert str(caught.value) == expected


def test_attached_ranks_must_be_there_and_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput, match=r"neither torchrun nor Slurm started this process"):
        config(ranks="attached").machine()
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    with_gpus(monkeypatch, 4)
    found = config().machine()
    assert (found.backend, found.hosts, found.local_ranks) == ("nccl", 2, 4)
    monkeypatch.setenv("WORLD_SIZE", "6")
    with pytest.raises(BadInput, match=r"6 processes were started, the topology asks for 8 ranks"):
        config().machine()
    assert config(ranks="local").machine().seat is None


def test_key_holds_what_changes_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(monkeypatch, 0)
    base = config()
    same = [config(timeout_seconds=5.0), config(backend="gloo"), config(ranks="local"), config(link_mib=16)]
    same += [config(retries=7), config(journal="elsewhere")]
    same.append(replace(base, model=replace(base.model, name="other", layers=3)))
    assert all(other.key_config() == base.key_config() for other in same)
    different = [
        config(oversubscribe=True),
        config(link_mib=8),
        config(executor="reference"),
        config(staging_mib=64),
        config(verify_before_commit=False),
        config(save="shards"),
        config(functional=True),
        replace(base, seed=1),
        replace(base, model=replace(base.model, scale=0.5)),
        replace(base, topology=Topology(nodes=4, gpus_per_node=2)),
    ]
    assert all(other.key_config() != base.key_config() for other in different)
    assert base.external_files() == {}
    top_k = [replace(config(functional=on), model=replace(base.model, top_k=3)).key_config() for on in (False, True)]
    assert top_k[0] == base.key_config()
    assert top_k[1] != config(functional=True).key_config()
    on_cpus = base.key_config()
    with_gpus(monkeypatch, 8)
    assert base.key_config() != on_cpus  # the link is measured with another message


def test_files_must_fit_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = checkpoints.deepseek_fp8(tmp_path / "files")
    options = UpdateOptions(weights="safetensors", weights_path=str(made.folder))

    def with_model(**changes: object) -> UpdateStageConfig:
        return UpdateStageConfig(options, replace(made.model, **changes), Topology(nodes=2, gpus_per_node=4))

    fits = with_model()
    assert fits.environment()["hosts"] == 1
    assert set(fits.external_files()) == {"update.weights_path"}
    assert pickle.loads(pickle.dumps(fits)) == fits
    assert with_model(first_moe_layer=0).key_config() != fits.key_config()
    with pytest.raises(
        BadInput, match=r"^update\.weights=safetensors needs model\.scale=1, and it is 0\.5: files hold "
    ):
        with_model(scale=0.5)
    with pytest.raises(BadInput, match=r"holds no tensor model\.layers\.5\.mlp\.experts\.0\.gate_proj\.weight\.$"):
        with_model(layers=5).environment()
    unknown = with_model(layers=None, experts=None)
    assert unknown.environment()["hosts"] == 1
    with pytest.raises(BadInput, match="holds no tensor"):
        unknown.check_weights(5, 4)
    missing = replace(fits, update=replace(options, weights_path=str(tmp_path / "gone")))
    with pytest.raises(BadInput, match=r"^update\.weights_path=.*gone does not exist\.$"):
        missing.environment()


def test_seats() -> None:
    seat = find_seat(TORCHRUN)
    assert seat is not None
    assert (seat.rank, seat.ranks, seat.local_rank, seat.local_ranks, seat.hosts) == (5, 8, 1, 4, 2)
    assert (seat.address, seat.port, seat.agent_store) == ("node-a", 1234, True)
    seat = find_seat(SLURM)
    assert seat is not None
    assert (seat.rank, seat.ranks, seat.local_rank, seat.local_ranks, seat.hosts) == (3, 4, 1, 2, 2)
    assert (seat.address, seat.port, seat.agent_store) == ("gpu03", 20077, False)
    batch_script = {key: value for key, value in SLURM.items() if "STEP" not in key}
    for alone in ({}, {"RANK": "0"}, batch_script, {**SLURM, "SLURM_STEP_NUM_TASKS": "1"}):
        assert find_seat(alone) is None
    assert find_seat({"SLURM_PROCID": "1", "SLURM_NTASKS": "2"}) is not None


@pytest.mark.parametrize(
    ("nodes", "host"),
    [("gpu1", "gpu1"), ("gpu1,gpu2", "gpu1"), ("gpu[03-05,09],x", "gpu03"), ("a-[7]-ib,b", "a-7-ib"), ("n[1,4]", "n1")],
)
def test_first_host_of_a_slurm_list(nodes: str, host: str) -> None:
    assert first_host(nodes) == host


def test_memory_is_asked_for_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    expert = sum(spec.nbytes for spec in SPECS)
    needed = rank_bytes(SPECS, layers=10, slots_per_rank=100, staging_bytes=100 * expert, link_mib=1, backend="gloo")
    assert needed > 11 * 100 * expert
    with_gpus(monkeypatch, 0)
    found = config().machine()
    monkeypatch.setattr(machine, "available_memory", lambda: 8 * needed)
    check_memory(needed, found)
    monkeypatch.setattr(machine, "available_memory", lambda: 8 * needed - 1)
    with pytest.raises(BadInput, match=r"^The slots of 8 ranks need \d+\.\d GB, and this machine has \d+\.\d GB"):
        check_memory(needed, found)
    monkeypatch.setattr(machine, "available_memory", lambda: None)
    check_memory(needed, found)

    with_gpus(monkeypatch, 4)
    found = config(backend="nccl", oversubscribe=True).machine()
    check_memory(40 * 10**9, found)
    with pytest.raises(BadInput, match=r"The slots of 2 ranks need 82\.0 GB, and a GPU here has 80\.0 GB"):
        check_memory(41 * 10**9, found)


def test_this_machine_is_known() -> None:
    assert machine.cpu_name()
    assert (machine.available_memory() or 0) > 10**6
    assert machine.cores() >= 1
