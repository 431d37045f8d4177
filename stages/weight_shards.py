"""Shards: the slots of every rank as one safetensors file each, with an index, as an update leaves them.

Rank r's file `rank_0000r.safetensors` holds, for each MoE layer, each tensor of all its slots together, as
`rank_0000r.layers.{layer}.{tensor}` `[slots_per_rank, …]`: layers are numbered as in the model, empty slots are zero. Beside
them lie the slots' checksums, `rank_0000r.checksums` `[L, slots_per_rank, K]`. The index has the `weight_map` that
checkpoints of Hugging Face have, and what else a reader must know in its `metadata`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from stages import paths
from stages.errors import BadInput, MoesaicError
from stages.expert_map import EMPTY, ExpertMap
from stages.model import ITEMSIZE, ModelSpec, TensorSpec
from stages.weight_files import DTYPES, INDEX, KEY, WeightFiles, digest

if TYPE_CHECKING:
    import torch

FORMAT = "moesaic shards 1"
CHECKSUMS = "checksums"
NAMES_OF_DTYPES = {ours: theirs for theirs, ours in DTYPES.items()}
Sums = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class ShardIndex:
    """`layer_ids` [L]: the model's numbers of the MoE layers. `physical_to_logical_map`: `[L, P]`, what the slots hold.

    origin: where the weights came from (`update.weights`) before they were first saved.
    """

    layer_ids: list[int]
    experts: int
    ranks: int
    tensors: list[TensorSpec]
    physical_to_logical_map: ExpertMap
    origin: str


def shard_name(rank: int) -> str:
    return f"rank_{rank:05}"


def shard_file(rank: int) -> str:
    return f"{shard_name(rank)}.safetensors"


def tensor_name(rank: int, layer_id: int, tensor: str) -> str:
    return f"{shard_name(rank)}.layers.{layer_id}.{tensor}"


def write_shard(
    folder: Path,
    rank: int,
    layer_ids: Sequence[int],
    specs: Sequence[TensorSpec],
    weights: Sequence[Sequence[torch.Tensor]],
    own: ExpertMap,
    checksums: Sums,
) -> None:
    """Write one rank's file, slot by slot, and read it back; `weights[layer][k]`: `[slots_per_rank, …]`, contiguous.

    own: `[L, slots_per_rank]`, checksums: `[L, slots_per_rank, K]`, both of what the slots hold. Raises `MoesaicError`
    if the file does not hold that in the end. On a GPU, one tensor of one slot is on the host at a time.
    """
    slots = own.shape[1]
    # Large elements first, so that all are aligned; the file may have no gaps.
    order = sorted(range(len(specs)), key=lambda k: -ITEMSIZE[specs[k].dtype])
    entries = [(f"{shard_name(rank)}.{CHECKSUMS}", "I64", list(checksums.shape))] + [
        (tensor_name(rank, layer_id, specs[k].name), NAMES_OF_DTYPES[specs[k].dtype], [slots, *specs[k].shape])
        for k in order
        for layer_id in layer_ids
    ]
    sizes = [checksums.nbytes] + [slots * specs[k].nbytes for k in order for _ in layer_ids]
    with paths.atomic(folder / shard_file(rank)) as temporary:
        with temporary.open("wb") as stream:
            stream.write(_header(entries, sizes))
            stream.write(np.where(own[:, :, None] == EMPTY, 0, checksums).astype(np.uint64).tobytes())
            for k in order:
                for layer, tensors in enumerate(weights):
                    for content in _slots(tensors[k], own[layer]):
                        stream.write(content)
        _read_back(temporary, rank, layer_ids, specs, own, checksums)


def _header(entries: Sequence[tuple[str, str, list[int]]], sizes: Sequence[int]) -> bytes:
    """As https://github.com/huggingface/safetensors#format has it: a length, and JSON filled up with spaces."""
    ends = np.cumsum(sizes).tolist()
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    for (name, dtype, shape), size, end in zip(entries, sizes, ends, strict=True):
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end - size, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _slots(tensor: torch.Tensor, own: npt.NDArray[np.int64]) -> Iterator[memoryview | bytes]:
    """The bytes of one tensor, slot by slot."""
    import torch

    for slot, expert in enumerate(own.tolist()):
        row = tensor[slot].reshape(-1).view(torch.uint8)
        yield bytes(row.numel()) if expert == EMPTY else row.cpu().numpy().data


def _read_back(
    file: Path, rank: int, layer_ids: Sequence[int], specs: Sequence[TensorSpec], own: ExpertMap, checksums: Sums
) -> None:
    from safetensors import safe_open

    from stages.checksum import checksum_rows

    with safe_open(file, "pt") as written:
        for layer, layer_id in enumerate(layer_ids):
            filled = own[layer] != EMPTY
            for k, spec in enumerate(specs):
                found = checksum_rows(written.get_tensor(tensor_name(rank, layer_id, spec.name)))
                wrong = np.flatnonzero(filled & (found != checksums[layer, :, k]))
                if len(wrong):
                    raise MoesaicError(
                        f"{file.parent / shard_file(rank)} does not hold what was written: tensor {spec.name} of slot "
                        f"{rank * own.shape[1] + wrong[0]} in layer {layer} reads differently."
                    )


def write_index(folder: Path, index: ShardIndex) -> tuple[str, ...]:
    """Write the index beside the files of all ranks; the names of all. Raises `MoesaicError` if a file is missing."""
    ranks = range(index.ranks)
    missing = [rank for rank in ranks if not (folder / shard_file(rank)).is_file()]
    if missing:
        raise MoesaicError(
            f"Rank {missing[0]} left no {folder / shard_file(missing[0])}: update.save=shards needs a run folder "
            "(hydra.run.dir) that all hosts share."
        )
    names = [
        *((rank, f"{shard_name(rank)}.{CHECKSUMS}") for rank in ranks),
        *((r, tensor_name(r, layer, spec.name)) for r in ranks for layer in index.layer_ids for spec in index.tensors),
    ]
    value = {**asdict(index), "physical_to_logical_map": index.physical_to_logical_map.tolist()}
    size = sum((folder / shard_file(rank)).stat().st_size for rank in ranks)
    metadata = {"total_size": size, "format": FORMAT, "moesaic": value}
    weight_map = {name: shard_file(rank) for rank, name in names}
    paths.write_json(folder / INDEX, {"metadata": metadata, "weight_map": weight_map})
    return (*(shard_file(rank) for rank in ranks), INDEX)


def read_index(folder: Path) -> ShardIndex:
    """Raises `BadInput` if `folder` holds no shards."""
    path = folder / INDEX
    try:
        value = json.loads(path.read_text(encoding="utf-8"))["metadata"]["moesaic"]
        return ShardIndex(
            **{
                **value,
                "tensors": [TensorSpec(**tensor) for tensor in value["tensors"]],
                "physical_to_logical_map": np.array(value["physical_to_logical_map"], dtype=np.int64),
            }
        )
    except FileNotFoundError:
        raise BadInput(f"{KEY}={folder} holds no shards: {INDEX} is not there.") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{path} cannot be read as an index of shards, as update.save=shards leaves it.") from error


class ShardSource:
    """The experts in a folder of shards, each from the first slot that holds it."""

    def __init__(self, files: WeightFiles, model: ModelSpec) -> None:
        self.files, self.model, self.specs = files, model, model.tensors
        self.index = read_index(files.folder)

    @property
    def title(self) -> str:
        return f"{self.files.folder} (shards of {self.index.ranks} ranks)"

    def check(self, layers: int, experts: int) -> None:
        index, folder = self.index, self.files.folder
        expert_map = index.physical_to_logical_map
        asked = self.model.layer_ids(layers)
        for what, found, needed in (
            ("experts", index.experts, experts),
            ("the tensors", _words(index.tensors), _words(self.specs)),
        ):
            if found != needed:
                raise BadInput(f"{KEY}={folder} holds {what} {found}, and the model has {needed}.")
        missing = sorted(set(asked) - set(index.layer_ids))
        if missing:
            raise BadInput(f"{KEY}={folder} holds no layer {missing[0]}: it has {_words(index.layer_ids)}.")
        if expert_map.shape[0] != len(index.layer_ids) or expert_map.shape[1] % index.ranks:
            raise BadInput(f"{KEY}={folder}: its map of {list(expert_map.shape)} does not fit its layers and ranks.")
        for layer_id in asked:
            row = index.layer_ids.index(layer_id)
            lost = np.setdiff1d(np.arange(experts), expert_map[row])
            if len(lost):
                raise BadInput(f"{KEY}={folder} holds expert {lost[0]} of layer {layer_id} in no slot.")
            for rank in range(index.ranks):
                for spec in self.specs:
                    self._check_entry(tensor_name(rank, layer_id, spec.name), spec)

    def pieces(self, layer: int, expert: int, tensor: int) -> list[torch.Tensor]:
        layer_id, rank, slot = self._place(layer, expert)
        return [self.files.tensor(tensor_name(rank, layer_id, self.specs[tensor].name))[slot]]

    def recorded(self, layer: int, expert: int) -> Sums:
        """[K]: the checksums that the expert's tensors had when they were saved."""
        layer_id, rank, slot = self._place(layer, expert)
        sums = self.files.tensor(f"{shard_name(rank)}.{CHECKSUMS}").numpy().view(np.uint64)
        return sums[self.index.layer_ids.index(layer_id), slot]

    def sha256(self) -> str:
        return digest(self.files, self.files.names)

    def _place(self, layer: int, expert: int) -> tuple[int, int, int]:
        """The layer's number in the model, and the rank and its slot that hold the expert."""
        index = self.index
        layer_id = self.model.layer_ids(layer + 1)[layer]
        slot = int(np.flatnonzero(index.physical_to_logical_map[index.layer_ids.index(layer_id)] == expert)[0])
        return layer_id, *divmod(slot, self._slots_per_rank)

    @property
    def _slots_per_rank(self) -> int:
        return self.index.physical_to_logical_map.shape[1] // self.index.ranks

    def _check_entry(self, name: str, spec: TensorSpec) -> None:
        entry = self.files.entry(name)
        needed = [self._slots_per_rank, *spec.shape]
        if (list(entry.shape), entry.dtype) != (needed, spec.dtype):
            raise BadInput(
                f"{KEY}={self.files.folder}: {entry.file} holds {name} as {entry.dtype} {list(entry.shape)}, and "
                f"{spec.dtype} {needed} is needed."
            )


def _words(values: Sequence[object]) -> str:
    return ", ".join(f"{v.name} {v.dtype} {v.shape}" if isinstance(v, TensorSpec) else str(v) for v in values)
