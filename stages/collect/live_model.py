"""Loads of a Hugging Face model that is run here: it reads text, and hooks on its routers count what they choose."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stages.collect.config import CollectOptions
from stages.collect.windows import Windows
from stages.collect.words import many
from stages.contract import Count, Progress
from stages.errors import BadInput
from stages.load import LoadStats
from stages.model import ModelSpec
from stages.recorder import ExpertLoadRecorder
from stages.routers import find_routers

if TYPE_CHECKING:
    import torch

CHARACTERS_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Batch:
    """`ids`: [sequences, length] without padding; `file`: the number of the text that they are from; `done`: the
    fraction of all text that has been read."""

    ids: torch.Tensor
    file: int
    done: float


def run_model(options: CollectOptions, spec: ModelSpec, progress: Progress) -> tuple[LoadStats, int]:
    """One row a batch, labelled with the name of its text, added up to windows as asked for; and experts per token."""
    files = options.text_files()
    for file in files:
        if not file.is_file():
            raise BadInput(f"collect.text={file} does not exist or is not a file.")
    device = resolved(options.device)
    progress(f"loading {Path(str(options.model)).name}", 0.0)
    options.model_files.files()
    tokenizer, model = _load(options.model_files.folder, options, device)
    routers = find_routers(model)
    _check_size(options, spec, {"layers": len(routers), "experts": routers[0].experts, "top_k": routers[0].top_k})
    recorder = ExpertLoadRecorder(len(routers), routers[0].experts, device)
    rows: list[tuple[int, int]] = []
    with recorder.watching(model):
        for batch in batches(tokenizer, files, options):
            _forward(model, batch.ids.to(device))
            recorder.end_window()
            rows.append((batch.file, batch.ids.numel()))
            read = sum(tokens for _, tokens in rows)
            count = Count("tokens", read, max(read, round(read / max(batch.done, 1e-9))))
            progress(f"{Path(str(options.model)).name} reads on {device}", batch.done, count)
    if not rows:
        raise BadInput(f"collect.text={', '.join(map(str, files))} has no text.")
    return _windows(recorder.load_stats(), np.array(rows), files, options), routers[0].top_k


def _windows(load: LoadStats, rows: Any, files: list[Path], options: CollectOptions) -> LoadStats:
    windows = Windows(options.window_by, options.window)
    for file in np.unique(rows[:, 0]):
        own = rows[:, 0] == file
        names = (files[file].name,) * int(own.sum())
        windows.add(load.logical_count[own], names, rows[own, 1].astype(np.float64), int(file))
    count, labels, _ = windows.finish()
    return LoadStats(count, labels)


def _load(folder: Path, options: CollectOptions, device: str) -> tuple[Any, Any]:
    """Tokenizer and model, from this machine's files alone and without running code that they bring."""
    transformers = library()
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, config=config, dtype="auto", use_safetensors=True, local_files_only=True
        )
    except Exception as error:  # transformers raises many kinds on what it cannot load
        first = next(iter(str(error).strip().splitlines()), "").rstrip(".")
        raise BadInput(f"collect.model={folder} cannot be loaded: {type(error).__name__}: {first[:300]}.") from error
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and options.length > longest:
        raise BadInput(f"collect.length={options.length} is not possible: the model reads at most {longest} tokens.")
    return tokenizer, model.eval().to(device)


def _forward(model: Any, ids: torch.Tensor) -> None:
    """Without the logits, which nobody looks at."""
    import torch

    with torch.inference_mode():
        model.base_model(input_ids=ids, use_cache=False)


def _check_size(options: CollectOptions, spec: ModelSpec, found: dict[str, int]) -> None:
    words = {"layers": "MoE layer", "experts": "expert", "top_k": "expert per token"}
    for key, number in found.items():
        wanted = getattr(spec, key)
        if wanted is not None and wanted != number:
            word = "experts per token" if key == "top_k" and number > 1 else words[key]
            has = f"{number} {word}" if key == "top_k" else many(number, word)
            raise BadInput(
                f"collect.model={options.model} has {has}, but model.{key}={wanted}: choose its own configuration, or "
                "model=custom."
            )


def batches(tokenizer: Any, files: list[Path], options: CollectOptions) -> Iterator[Batch]:
    """Each text, cut into sequences of `length` tokens, `batch` of them at a time; what is left of it, as it is."""
    import torch

    size = max(1, sum(file.stat().st_size for file in files))
    read, left = 0, options.max_tokens
    for number, file in enumerate(files):
        waiting: list[int] = []
        for text, nbytes in _pieces(file):
            read += nbytes
            waiting += tokenizer(text, add_special_tokens=False)["input_ids"]
            whole = options.batch * options.length
            while len(waiting) >= whole and (left is None or left >= whole):
                ids, waiting = waiting[:whole], waiting[whole:]
                left = None if left is None else left - whole
                yield Batch(torch.tensor(ids).reshape(options.batch, options.length), number, min(1.0, read / size))
        if left is not None:
            waiting = waiting[:left]
            left -= len(waiting)
        sequences = len(waiting) // options.length
        if sequences:
            ids = waiting[: sequences * options.length]
            yield Batch(torch.tensor(ids).reshape(sequences, options.length), number, read / size)
        if rest := waiting[sequences * options.length :]:
            yield Batch(torch.tensor([rest]), number, read / size)
        if left == 0:
            return


def _pieces(file: Path) -> Iterator[tuple[str, int]]:
    """Parts of a text, cut at line ends, and how many bytes each is."""
    try:
        with file.open(encoding="utf-8") as stream:
            while lines := stream.readlines(CHARACTERS_AT_ONCE):
                text = "".join(lines)
                yield text, len(text.encode())
    except UnicodeDecodeError as error:
        raise BadInput(f"collect.text={file} is no text in UTF-8: {error.reason} at byte {error.start}.") from error


def library() -> Any:
    """The module `transformers`, quiet. Raises `BadInput` where it is not installed."""
    try:
        import transformers
    except ImportError as error:
        raise BadInput(
            "collect=transformers needs the library transformers: pip install 'moesaic[transformers]'."
        ) from error
    logging: Any = transformers.utils.logging
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return transformers


def resolved(device: str) -> str:
    """`cuda` or `cpu`. Raises `BadInput` where there is none such."""
    if device == "cpu":
        return device
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if device == "cuda":
        raise BadInput("collect.device=cuda is not possible: torch finds no GPU here.")
    return "cpu"


def environment(device: str) -> dict[str, str]:
    """What of this machine can change what a router chooses."""
    from importlib.metadata import PackageNotFoundError, version

    found = resolved(device)
    name = found
    if found == "cuda":
        import torch

        name = torch.cuda.get_device_name()
    try:
        return {"device": name, "torch": version("torch"), "transformers": version("transformers")}
    except PackageNotFoundError:
        library()
        raise
