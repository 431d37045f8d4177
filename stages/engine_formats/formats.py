"""The formats by the engine's name, and writing one so that it is known to read back as the same placement."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stages.engine_formats import ascend, omni, sglang, trtllm, vllm
from stages.engine_formats.stored import Outgoing, Stored
from stages.errors import BadInput, MoesaicError
from stages.expert_map import ExpertMap, counts_per_rank


@dataclass(frozen=True)
class Format:
    """`endings`: what a file of it may end in, the usual one first."""

    engine: str
    endings: tuple[str, ...]
    write: Callable[[Path, Outgoing], None]
    read: Callable[[Path], Stored]


FORMATS = {
    "sglang": Format("SGLang", (".json", ".pt"), sglang.write, sglang.read),
    "vllm": Format("vLLM", (".jsonl",), vllm.write, vllm.read),
    "trtllm": Format("TensorRT-LLM", (".yaml", ".yml"), trtllm.write, trtllm.read),
    "ascend": Format("vLLM-Ascend", (".json",), ascend.write, ascend.read),
    "omni": Format("omni-infer", (".npy",), omni.write, omni.read),
}


def export_placement(engine: str, path: Path, outgoing: Outgoing) -> None:
    """Write `outgoing` for `engine` (a key of `FORMATS`) into `path`, and read it back. Raises `BadInput` where the
    format cannot hold it."""
    kind = FORMATS[engine]
    if path.suffix.lower() not in kind.endings:
        raise BadInput(f"{kind.engine} reads no {path.name}: its file must end in {' or '.join(kind.endings)}.")
    if outgoing.map.shape[1] % outgoing.ranks:
        raise BadInput(f"{outgoing.map.shape[1]} slots do not divide evenly over {outgoing.ranks} ranks.")
    kind.write(path, outgoing)
    back = kind.read(path).moe_rows(len(outgoing.map), outgoing.numbers, str(path))
    if not same_placement(back, outgoing, ordered=engine != "omni"):
        raise MoesaicError(f"{path} does not read back as the placement that was written into it.")


def same_placement(found: ExpertMap, outgoing: Outgoing, *, ordered: bool) -> bool:
    """Whether `found` says the same; if not `ordered`, the slots of a rank may be in any order."""
    if ordered:
        return np.array_equal(found, outgoing.map)
    if len(found) != len(outgoing.map) or found.shape[1] % outgoing.ranks:
        return False
    there, wanted = (counts_per_rank(rows, outgoing.experts, outgoing.ranks) for rows in (found, outgoing.map))
    return np.array_equal(there, wanted)
