"""A folder of safetensors files: which tensor lies in which file, its shape and dtype, and its memory-mapped content.

Files are opened when a tensor of theirs is first asked for; with `model.safetensors.index.json`, which names the file
of every tensor, no others. Opening reads a file's header alone, and a tensor is a view of the mapped file: what is
never touched is never read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from stages.digests import sha256_of_files
from stages.errors import BadInput

if TYPE_CHECKING:
    import torch

KEY = "update.weights_path"
"""The config key that names such a folder."""
INDEX = "model.safetensors.index.json"
DTYPES = {
    "U8": "uint8", "I8": "int8", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
    "I16": "int16", "F16": "float16", "BF16": "bfloat16",
    "I32": "int32", "F32": "float32", "I64": "int64", "F64": "float64",
}  # fmt: skip
"""The format's names of dtypes -> torch's."""


@dataclass(frozen=True)
class Entry:
    """One tensor of a file; `dtype` in torch's names, or in the format's where torch has none."""

    file: str
    shape: tuple[int, ...]
    dtype: str


class WeightFiles:
    """The safetensors files of one folder. Safe for use by several threads."""

    def __init__(self, folder: Path) -> None:
        """Raises `BadInput` if there is no such folder, or no safetensors file in it."""
        self.folder = folder
        if not folder.is_dir():
            raise BadInput(f"{KEY}={folder} {'is no folder' if folder.exists() else 'does not exist'}.")
        self._headers: dict[str, Any] = {}
        self._mapped: dict[str, Any] = {}
        self._lock = Lock()

    def __reduce__(self) -> tuple[type[WeightFiles], tuple[Path]]:
        """Opened anew in another process."""
        return WeightFiles, (self.folder,)

    @property
    def names(self) -> Collection[str]:
        """The names of all tensors."""
        return self._files.keys()

    def file_of(self, name: str) -> str:
        """The file that holds the tensor. Raises `BadInput` if none does."""
        if name not in self._files:
            raise BadInput(f"{KEY}={self.folder} holds no tensor {name}.")
        return self._files[name]

    def entry(self, name: str) -> Entry:
        file = self.file_of(name)
        from safetensors import SafetensorError

        try:
            piece = self._open(self._headers, file, "np").get_slice(name)
        except SafetensorError as error:
            raise BadInput(f"{INDEX} says that {file} holds {name}, and it does not.") from error
        dtype = piece.get_dtype()
        return Entry(file, tuple(piece.get_shape()), DTYPES.get(dtype, dtype))

    def tensor(self, name: str) -> torch.Tensor:
        """A view of the mapped file; not to be written to."""
        return self._open(self._mapped, self.file_of(name), "pt").get_tensor(name)

    @cached_property
    def _files(self) -> dict[str, str]:
        """Tensor -> name of its file."""
        index = self.folder / INDEX
        if index.is_file():
            return self._read_index(index)
        found: dict[str, str] = {}
        for path in sorted(self.folder.glob("*.safetensors")):
            for name in self._open(self._headers, path.name, "np").keys():  # noqa: SIM118  (no mapping)
                if name in found:
                    raise BadInput(
                        f"{KEY}={self.folder}: {found[name]} and {path.name} both hold {name}, and there is no "
                        f"{INDEX} to choose between them."
                    )
                found[name] = path.name
        if not found:
            raise BadInput(f"{KEY}={self.folder} holds no safetensors file with a tensor in it.")
        return found

    def _read_index(self, index: Path) -> dict[str, str]:
        try:
            found = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            return {str(name): str(file) for name, file in found.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise BadInput(f"{index} cannot be read: it has no `weight_map` from tensors to files.") from error

    def _open(self, opened: dict[str, Any], file: str, framework: str) -> Any:
        from safetensors import SafetensorError, safe_open

        with self._lock:
            if file not in opened:
                path = self.folder / file
                if not path.is_file():
                    raise BadInput(f"{KEY}={self.folder}: the file {file} is not there.")
                try:
                    opened[file] = safe_open(path, framework)
                except (SafetensorError, OSError) as error:
                    raise BadInput(f"{path} cannot be read as safetensors: {error}") from error
            return opened[file]


def digest(files: WeightFiles, names: Iterable[str]) -> str:
    """SHA-256 over which file holds which of the tensors `names`, and over the content of these files."""
    holders = {name: files.file_of(name) for name in sorted(names)}
    used = sorted(set(holders.values()))
    digests = sha256_of_files([files.folder / file for file in used])
    lines = [f"{name}\0{file}" for name, file in holders.items()]
    lines += [f"{file}\0{digest}" for file, digest in zip(used, digests, strict=True)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
