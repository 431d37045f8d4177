"""Expert weights that lie in files: a checkpoint of Hugging Face, or the shards that an update saved.

`open_source` finds out what is there from names and headers alone. Layers count MoE layers here, as everywhere; what a
file calls them is the source's affair. A tensor of a slot is read as pieces, views of mapped files that are stacked
along the first dimension.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from stages.errors import BadInput
from stages.model import ModelSpec, TensorSpec
from stages.weight_files import KEY, WeightFiles, digest
from stages.weight_names import LAYER, Part, find_naming
from stages.weight_shards import ShardSource

if TYPE_CHECKING:
    import torch

FROM_FILES = ("safetensors", "shards")
"""The kinds of `update.weights` that lie in files."""


class ExpertSource(Protocol):
    """`specs`: the tensors of an expert, in the model's order."""

    specs: list[TensorSpec]

    @property
    def title(self) -> str:
        """What it is, for a reader."""

    def check(self, layers: int, experts: int) -> None:
        """Raise `BadInput` unless all of these experts are there, with the model's shapes and dtypes."""

    def pieces(self, layer: int, expert: int, tensor: int) -> list[torch.Tensor]:
        """Tensor number `tensor` of an expert, in pieces to be stacked. Views: not to be written to."""

    def sha256(self) -> str:
        """Of what lies in files and can decide a weight: other files of the folder do not count."""


def open_source(kind: str, folder: Path, model: ModelSpec) -> ExpertSource:
    """The source `kind` (one of `FROM_FILES`) in `folder`. Raises `BadInput` if there is none."""
    files = WeightFiles(folder)
    return CheckpointSource(files, model) if kind == "safetensors" else ShardSource(files, model)


@dataclass
class CheckpointSource:
    """A checkpoint folder, in one of the namings of `stages.weight_names`."""

    files: WeightFiles
    model: ModelSpec

    def __post_init__(self) -> None:
        self.specs = self.model.tensors
        self._naming = find_naming(self.files.names, self.model.layer_ids(1)[0], self.files.folder)
        self._checked: set[tuple[int, int]] = set()

    @property
    def title(self) -> str:
        return f"{self.files.folder} (names as in {self._naming.naming.title})"

    def check(self, layers: int, experts: int) -> None:
        if (layers, experts) in self._checked:
            return
        for layer_id in self.model.layer_ids(layers):
            self._check_number(layer_id, experts)
            for expert in range(1 if self._naming.naming.fused else experts):
                for spec in self.specs:
                    parts = self._naming.parts(spec, layer_id, expert)
                    _check_parts(self.files, spec, parts, experts)
        self._checked.add((layers, experts))

    def pieces(self, layer: int, expert: int, tensor: int) -> list[torch.Tensor]:
        parts = self._naming.parts(self.specs[tensor], self.model.layer_ids(layer + 1)[layer], expert)
        return [_piece(self.files.tensor(part.name), part) for part in parts]

    def sha256(self) -> str:
        matches = [match for name in self.files.names if (match := LAYER.match(name))]
        matches = [match for match in matches if match["prefix"] == self._naming.prefix]
        if self.model.layers is not None:
            layers = set(self.model.layer_ids(self.model.layers))
            matches = [match for match in matches if int(match["layer"]) in layers]
        return digest(self.files, [match.string for match in matches])

    def _check_number(self, layer_id: int, experts: int) -> None:
        """A checkpoint with more experts than the model is that of another model."""
        if not self._naming.naming.fused:
            more = self._naming.parts(self.specs[0], layer_id, experts)[0].name
            if more in self.files.names:
                raise BadInput(
                    f"{KEY}={self.files.folder}: {self.files.file_of(more)} holds {more}, and the model has {experts} "
                    "experts: it is a checkpoint of another model."
                )


def _piece(tensor: torch.Tensor, part: Part) -> torch.Tensor:
    if part.row is not None:
        tensor = tensor[part.row]
    if part.transposed:
        tensor = tensor.T
    if part.flat:
        tensor = tensor.flatten(1)
    return tensor if tensor.ndim else tensor[None]


def _check_parts(files: WeightFiles, spec: TensorSpec, parts: list[Part], experts: int) -> None:
    """Every part must be there and have its share of the slot's tensor."""
    rows, rest = divmod(spec.shape[0], len(parts))
    if rest:
        raise BadInput(
            f"model.tensors: {spec.name} has {spec.shape[0]} rows, which {len(parts)} tensors of a checkpoint cannot "
            "share evenly."
        )
    expected = [rows, *spec.shape[1:]]
    for part in parts:
        entry = files.entry(part.name)
        found = list(entry.shape)
        count, shape = (found[0], found[1:]) if part.row is not None and found else (experts, found)
        if part.flat:
            shape = [shape[0], math.prod(shape[1:])] if shape else shape
        shape = shape or [1]
        wanted = expected[::-1] if part.transposed else expected
        if (count, shape, entry.dtype) != (experts, wanted, spec.dtype):
            whole = [experts, *wanted] if part.row is not None else wanted
            raise BadInput(
                f"{KEY}={files.folder}: {entry.file} holds {part.name} as {entry.dtype} {found}, and model.tensors "
                f"needs {spec.dtype} {whole} for {spec.name}."
            )


def copy_into(target: torch.Tensor, pieces: Sequence[torch.Tensor]) -> None:
    """Write `pieces`, stacked, into `target`."""
    first = 0
    for piece in pieces:
        target[first : first + len(piece)].copy_(piece)
        first += len(piece)


def truth(
    source: ExpertSource, layers: npt.NDArray[np.int64], experts: npt.NDArray[np.int64]
) -> npt.NDArray[np.uint64]:
    """[N, K]: the checksums of `experts[n]` in `layers[n]` as they lie in the files."""
    import torch

    from stages.checksum import checksum_rows

    out = np.empty((len(layers), len(source.specs)), dtype=np.uint64)
    for k, spec in enumerate(source.specs):
        stacked = torch.empty(spec.shape, dtype=getattr(torch, spec.dtype))
        for n, (layer, expert) in enumerate(zip(layers.tolist(), experts.tolist(), strict=True)):
            pieces = source.pieces(layer, expert, k)
            if len(pieces) > 1:
                copy_into(stacked, pieces)
            out[n, k] = checksum_rows((stacked if len(pieces) > 1 else pieces[0])[None])[0]
    return out
