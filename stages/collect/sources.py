"""Opening a file or folder of loads as what it is, given or recognised."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from stages.collect.dump import Dump
from stages.collect.engines.omni import NAME as OMNI_NAME
from stages.collect.engines.omni import read_omni
from stages.collect.engines.sglang import read_sglang
from stages.collect.engines.trtllm import META, read_trtllm
from stages.collect.engines.vllm import read_vllm
from stages.collect.guard import guarded
from stages.collect.nested import read_history
from stages.collect.table import READERS, read_table
from stages.errors import BadInput
from stages.expert_map import ExpertMap
from stages.model import ModelSpec

WORDS = {
    "sglang": "a dump of SGLang",
    "trtllm": "statistics of TensorRT-LLM",
    "vllm": "statistics of vLLM",
    "adrs": "a load history of ADRS",
    "omni": "counts of omni-infer",
}


def open_source(kind: str, path: Path, model: ModelSpec, current: ExpertMap | None, *, strict: bool) -> Dump:
    """What is at `path`, which is a `kind` of source or is recognised (`auto`).

    `current`: the placement that was in place, if it is known from elsewhere. Unless `strict`, incomplete steps are
    left out.
    """
    if kind == "table":
        return read_table(path, model)
    if not path.exists():
        raise BadInput(f"collect.path={path} does not exist.")
    if path.is_file() and not path.stat().st_size:
        raise BadInput(f"{path} is empty: it has no bytes.")
    found = recognise(path) if kind == "auto" else kind
    if found == "table":
        return read_table(path, model)
    if found == "trtllm" and not path.is_dir():
        raise BadInput(f"collect.path={path} is not a folder; TensorRT-LLM writes one with {META} in it.")
    if found == "adrs" and not path.is_file():
        raise BadInput(f"collect.path={path} is not a file.")
    readers: dict[str, Callable[[], Dump]] = {
        "sglang": lambda: read_sglang(path, model, strict=strict),
        "trtllm": lambda: read_trtllm(path, strict=strict),
        "vllm": lambda: read_vllm(path, model, strict=strict),
        "adrs": lambda: read_history(path),
        "omni": lambda: read_omni(path, model, current, strict=strict),
    }
    return guarded(readers[found], path, WORDS[found])


def recognise(path: Path) -> str:
    """The kind of what is at `path`, by the names in a folder or the ending of a file."""
    if path.is_dir():
        names = [file.name for file in path.iterdir() if file.is_file()]
        if META in names:
            return "trtllm"
        if any(OMNI_NAME.fullmatch(name) for name in names):
            return "omni"
        for ending, kind in ((".pt", "sglang"), (".jsonl", "vllm")):
            if any(name.lower().endswith(ending) for name in names):
                return kind
        raise BadInput(
            f"collect.path={path} is no folder of loads that is known: neither {META}, .pt nor .jsonl files nor "
            f"activation counts of omni-infer are in it ({len(names)} files)."
        )
    kinds = {".pt": "sglang", ".jsonl": "vllm", **dict.fromkeys(READERS, "table")}
    if path.suffix.lower() not in kinds:
        raise BadInput(f"collect.path={path} has no known ending; allowed are {', '.join(kinds)}, and folders.")
    return kinds[path.suffix.lower()]
