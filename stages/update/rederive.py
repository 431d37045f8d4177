"""The audit of an update: did it work on the maps of the placement, and does what it says of itself agree?

What it measured (seconds, GB/s) nothing can give again; that every byte is where it belongs is for `verify` to say.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from stages import paths
from stages.checksum_table import read_checksums, write_checksums
from stages.execution import read_execution
from stages.placement import read_placement
from stages.rederived import Rederived
from stages.transfers import read_transfers
from stages.update.config import UpdateStageConfig


def rederive(
    config: UpdateStageConfig, inputs: Mapping[str, Path], folder: Path, metrics: Mapping[str, float]
) -> Rederived:
    out = Rederived(metrics)
    placement = read_placement(inputs["placement"])
    transfers = read_transfers(inputs["transfers"])
    table = read_checksums(folder / paths.CHECKSUMS)
    execution = read_execution(folder / paths.EXECUTION)
    maps = (("before", table.old, placement.current), ("after", table.new, placement.physical_to_logical_map))
    for when, found, asked in maps:
        out.must(np.array_equal(found, asked), f"the map {when} the update in {paths.CHECKSUMS} is not the placement's")
    for what, ranks in (("checksums", table.ranks), ("execution", execution.ranks)):
        out.must(ranks == config.topology.ranks, f"the {what} are of {ranks} ranks, not of {config.topology.ranks}")
    out.same_files(folder, lambda target: write_checksums(target, table))
    out.done.append(f"the maps of {table.before.size:,} checksums")
    if execution.first == 0 and execution.resent == 0 and execution.committed == execution.batches:
        network = transfers.select(transfers.network)
        for name, told, rank in (
            ("received", execution.received_bytes, network.dst_rank),
            ("sent", execution.sent_bytes, network.src_rank),
        ):
            planned = np.bincount(rank, weights=network.bytes, minlength=execution.ranks).astype(np.int64).tolist()
            out.must(told == planned, f"the bytes that ranks {name} in {paths.EXECUTION} are not those of the plan")
        out.done.append("the bytes of each rank by the plan")
    out.metrics_of(
        {
            name: float(getattr(execution, name))
            for name in ("update_seconds", "moved_bytes", "effective_gb_per_s", "link_gb_per_s", "link_efficiency",
                         "staging_bytes", "peak_bytes")
        }
    )  # fmt: skip
    out.metrics_of({f"{part}_seconds": seconds for part, seconds in execution.split.items()})
    events = json.loads((folder / paths.TRACE).read_text(encoding="utf-8"))["traceEvents"]
    out.must({e["pid"] for e in events} <= set(range(execution.ranks)), f"{paths.TRACE} shows ranks that are not there")
    return out
