"""The update stage: carries a plan out between real ranks and records what every slot held before and after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from stages import paths
from stages.checksum_table import ChecksumTable, write_checksums
from stages.contract import Progress, StageResult
from stages.errors import BadInput, Corruption, MoesaicError
from stages.execution import Execution, write_execution
from stages.functional import write_functional
from stages.holdings import write_holdings
from stages.temporary import temporary_folder
from stages.update import attached, inventory
from stages.update.config import UpdateStageConfig
from stages.update.failures import RanksLost
from stages.update.job import Job, read_job
from stages.update.launch import launch, start_server
from stages.update.machine import Machine
from stages.update.measured import Measured
from stages.update.memory import check_memory, rank_bytes
from stages.update.picture import timeline
from stages.update.progress_board import DOING, OnReport, Report
from stages.update.save import check_disk, check_own_folder, finish_shards
from stages.update.stopped import why_stopped
from stages.update.trace import write_trace


def update(config: UpdateStageConfig, inputs: Mapping[str, Path], folder: Path, progress: Progress) -> StageResult:
    """Inputs: `placement` and `transfers`. Writes execution.json, checksums.parquet and .csv, trace.json."""
    machine = config.machine()
    if machine.seat is None:
        start_server()  # it imports torch while this process reads its inputs
    topology = config.topology
    from_files = config.weight_source is not None
    job = read_job(inputs, topology.ranks, topology.gpus_per_node, config.model.expert_bytes, from_files=from_files)
    job = replace(job, folder=str(folder.absolute()))
    link_mib = config.link_mib(machine.backend)
    config.check_weights(job.layers, job.experts)
    check_own_folder(config, folder)
    check_disk(config, job)
    specs = config.model.scaled_tensors()
    staging = job.slots_per_rank * config.model.expert_bytes
    if config.update.executor == "pipelined":
        staging = config.staging_budget(machine.transport, job.most_arrivals()).nbytes(config.staging_layout)
    check_memory(rank_bytes(specs, job.layers, job.slots_per_rank, staging, link_mib, machine.backend), machine)

    def on_report(report: Report) -> None:
        progress(DOING[report.phase], report.fraction, *report.counts)

    try:
        if machine.seat is None:
            measured = _run_local(config, job, machine, on_report)
        else:
            measured = attached.drive(config, job, machine, on_report)
    except BadInput:  # said before the first byte
        raise
    except MoesaicError as error:
        _tell_what_is_held(config, job, machine, error, folder)
        raise
    return _report(config, job, machine, measured, folder)


def _run_local(config: UpdateStageConfig, job: Job, machine: Machine, on_report: OnReport) -> Measured:
    from stages.update.worker import save_update

    with temporary_folder("update") as folder:
        found = folder / "measured"
        launch(
            save_update,
            (config, job, found),
            job.ranks,
            backend=machine.backend,
            timeout_seconds=config.update.timeout_seconds,
            oversubscribe=config.update.oversubscribe,
            on_report=on_report,
        )
        return Measured.from_bytes(found.read_bytes())


def _tell_what_is_held(
    config: UpdateStageConfig, job: Job, machine: Machine, error: MoesaicError, folder: Path
) -> None:
    """Leave in `folder` what the ranks held when `error` came, and say it in the error."""
    if config.update.executor == "reference":
        return
    lost = error.ranks if isinstance(error, RanksLost) else ()
    holdings = inventory.by_journals(config, job, machine.transport, lost)
    if holdings is None:
        return
    error.result = StageResult(files=write_holdings(folder, holdings))
    if not isinstance(error, Corruption):  # which says itself that nothing was moved
        error.args = (f"{str(error).rstrip('.')}; {inventory.told(holdings, job.slots_per_rank)}.",)


def _report(config: UpdateStageConfig, job: Job, machine: Machine, measured: Measured, folder: Path) -> StageResult:
    from stages.update.foretold import beside, foretold

    first, committed, batches, resent = measured.steps.tolist()
    execution = Execution(
        executor=config.update.executor,
        backend=machine.backend,
        ranks=job.ranks,
        hosts=machine.hosts,
        device=machine.device,
        torch=machine.torch,
        nccl=machine.nccl,
        update_seconds=float(measured.seconds.max()),
        received_bytes=measured.received.tolist(),
        sent_bytes=measured.sent.tolist(),
        link_gb_per_s=float(measured.link_gb_per_s[0]),
        staging_bytes=int(measured.staging.max()),
        peak_bytes=int(measured.peak.max()),
        checksum_seconds=measured.checksum_seconds(),
        rank_seconds=measured.seconds.tolist(),
        layer_seconds=measured.event_seconds("layer").max(axis=0).tolist(),
        weights=config.update.weights,
        transport=machine.transport,
        first=first,
        committed=committed,
        batches=batches,
        resent=resent,
        split=measured.split() if config.update.executor == "pipelined" else {},
    )
    names = tuple(tensor.name for tensor in config.model.tensors)
    prediction = foretold(config, job, machine.transport)
    table = ChecksumTable(measured.before, measured.after, job.old, job.new, names, job.ranks)
    files = (
        *write_execution(folder, execution),
        *write_checksums(folder, table),
        *write_trace(folder, measured),
        *write_functional(folder, measured.proof()),
        *finish_shards(config, job, folder),
    )
    metrics = (
        "update_seconds", "moved_bytes", "effective_gb_per_s", "link_gb_per_s", "link_efficiency", "staging_bytes", "peak_bytes",
    )  # fmt: skip
    result = StageResult(
        files=files,
        metrics={
            **{name: float(getattr(execution, name)) for name in metrics},
            **{f"{what}_seconds": seconds for what, seconds in execution.split.items()},
        },
        figures={"timeline": timeline(measured, prediction.seconds)},
        tags={
            "executor": execution.executor,
            "backend": execution.backend,
            "device": execution.device,
            "ranks": str(execution.ranks),
            "hosts": str(execution.hosts),
            "torch": execution.torch,
            "nccl": execution.nccl or "none",
            "weights": execution.weights,
        },
        note=_note(config, execution, job) + beside(config, job, prediction, execution.update_seconds),
    )
    if measured.complete:
        return result
    holdings = inventory.by_findings(config, job, measured)
    result = replace(result, files=(*files, *write_holdings(folder, holdings)))
    tries, layer_ids = config.update.retries + 1, range(job.layers)
    why = why_stopped(measured.faults, names, layer_ids, tries, committed, batches)
    raise Corruption(f"{why}{inventory.doubts(holdings)}: the same command goes on from there.", result)


def _note(config: UpdateStageConfig, execution: Execution, job: Job) -> str:
    source = "made by the generator" if config.weight_source is None else f"from {config.weight_source.title}"
    way = "the plan `direct`, planned as it goes" if job.direct else "the rows of the plan"
    busiest = max(execution.received_bytes)
    return (
        f"{execution.ranks} ranks on {execution.hosts} host{'s' if execution.hosts > 1 else ''} ({execution.device}, "
        f"{execution.backend}) moved {execution.moved_bytes:,} bytes in **{execution.update_seconds * 1e3:.1f} ms** "
        f"over {job.layers} layers, by {way}. The weights were {source}.\n\n"
        f"| | |\n|---|---|\n"
        f"| received by the busiest rank | {busiest:,} bytes, {execution.effective_gb_per_s:.2f} GB/s |\n"
        f"| link, measured in the same run | {execution.link_gb_per_s:.2f} GB/s |\n"
        f"| share of the link | {execution.link_efficiency:.1%} |\n"
        f"| staging a rank | {execution.staging_bytes:,} bytes |\n"
        f"| memory beside the weights at most, measured | {execution.peak_bytes:,} bytes |\n"
        f"| hashing before and after | {execution.checksum_seconds * 1e3:.1f} ms |\n\n"
        f"`{paths.TRACE}` shows every rank and layer over time; open it in [Perfetto](https://ui.perfetto.dev).\n"
    )
