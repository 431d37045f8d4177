"""Files as engines write them, made from counts that are known."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file

Counts = np.ndarray
DUMP = "expert_distribution_recorder_{time}.pt"


def physical(count: Counts, expert_map: np.ndarray, rng: np.random.Generator) -> Counts:
    """[T, L, P] whose slots add up to `count` [T, L, E]: each expert's tokens over its slots as chance has it."""
    rows, layers, experts = count.shape
    out = np.zeros((rows, layers, expert_map.shape[1]), dtype=np.int64)
    for row in range(rows):
        for layer in range(layers):
            for expert in range(experts):
                slots = np.flatnonzero(expert_map[layer] == expert)
                out[row, layer, slots] = rng.multinomial(count[row, layer, expert], np.full(len(slots), 1 / len(slots)))
    return out


def over_ranks(count: Counts, ranks: int, rng: np.random.Generator) -> list[Counts]:
    """Parts that add up to `count`."""
    cuts = np.sort(rng.integers(0, count + 1, (ranks - 1, *count.shape)), axis=0)
    edges = [np.zeros_like(count), *cuts, count]
    return [b - a for a, b in pairwise(edges)]


def some_map(layers: int, experts: int, slots: int, rng: np.random.Generator, empty: bool = False) -> np.ndarray:
    extra = slots - experts
    rows = [
        np.concatenate([np.arange(experts), rng.integers(-1 if empty else 0, experts, extra)]) for _ in range(layers)
    ]
    return np.stack([rng.permutation(row) for row in rows])


def write_stat(file: Path, count: Counts, rank: int = 0, **other: Any) -> None:
    tensor = torch.from_numpy(count.astype(np.int32))
    torch.save({"rank": rank, "logical_count": tensor, "average_utilization_rate_over_window": None, **other}, file)


def write_passes(
    folder: Path,
    parts: list[Counts],
    expert_map: np.ndarray,
    first_pass: int = 7,
    per_token: bool = False,
    time: str = "1764000000.25",
) -> list[Path]:
    """One file a rank; `parts`: [passes, L, P] of each rank. `per_token`: with the choices that make the counts, k=2."""
    files = []
    for rank, part in enumerate(parts):
        records = []
        for number, counted in enumerate(part):
            record: dict[str, Any] = {"forward_pass_id": first_pass + number, "rank": rank, "gatherer_key": "primary"}
            if per_token:
                record |= {"input_ids": [1, 2], "positions": [0, 1], "topk_ids_of_layer": choices(counted)}
            record["global_physical_count"] = torch.from_numpy(counted.astype(np.int32))
            records.append(record)
        file = folder / DUMP.format(time=f"{time}{rank}_{rank}")
        torch.save({"records": records, "last_physical_to_logical_map": torch.from_numpy(expert_map)}, file)
        files.append(file)
    return files


def choices(counted: np.ndarray, top_k: int = 2) -> torch.Tensor:
    """int32 [L, tokens, k] of the slots that were chosen, padded with -1; `counted`: [L, P]."""
    per_layer = [np.repeat(np.arange(counted.shape[1]), row) for row in counted]
    tokens = -(-max(map(len, per_layer)) // top_k) + 1
    ids = np.full((len(counted), tokens * top_k), -1)
    for layer, chosen in enumerate(per_layer):
        ids[layer, : len(chosen)] = chosen
    return torch.from_numpy(ids.reshape(len(counted), tokens, top_k).astype(np.int32))


def write_trtllm(folder: Path, parts: list[Counts], layer_ids: list[int], first: int = 100, top_k: int = 2) -> None:
    meta = {"num_experts": parts[0].shape[2], "num_experts_per_token": top_k}
    (folder / "meta_info.json").write_text(json.dumps(meta))
    for rank, part in enumerate(parts):
        tensors = {
            f"{first + row}_{layer}": np.ascontiguousarray(part[row, column])
            for row in range(len(part))
            for column, layer in enumerate(layer_ids)
        }
        save_file(tensors, folder / f"rank{rank}.safetensors")


def vllm_line(step: int, load: np.ndarray, expert_map: np.ndarray, ranks: int = 2) -> str:
    record = {"record_type": "eplb_load_stats", "version": 1, "step": step, "num_ranks": ranks}
    return json.dumps({**record, "expert_load": load.tolist(), "p2l_map": expert_map.tolist()}) + "\n"


def write_omni(folder: Path, load: Counts, ranks: int) -> None:
    """`load`: [T, L, P]."""
    for step, row in enumerate(load, start=1):
        for rank, part in enumerate(np.split(row, ranks, axis=1)):
            text = "".join("\t".join(map(str, line)) + "\t\n" for line in part.tolist())
            (folder / f"activation_counts_recordstep_{step}_rank_{rank}.txt").write_text(text)
