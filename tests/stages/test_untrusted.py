"""Files that torch is said to have saved: tensors come through, anything else does not, and nothing of it is run."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from stages.errors import BadInput
from stages.untrusted import load_tensors


class Bomb:
    """Leaves a trace when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("how", ["archive", "legacy", "raw", "beside tensors"])
def test_hostile_pickles_are_refused_and_nothing_runs(tmp_path: Path, how: str) -> None:
    path, trace = tmp_path / "hostile.pt", tmp_path / "trace"
    bomb = Bomb(trace)
    if how == "raw":
        path.write_bytes(pickle.dumps(bomb))
    elif how == "beside tensors":
        torch.save({"logical_count": torch.ones(2, 3, 4), "note": bomb}, path)
    else:
        torch.save(bomb, path, _use_new_zipfile_serialization=how == "archive")
    with pytest.raises(BadInput, match="which are never loaded: nothing of it was run") as error:
        load_tensors(path)
    assert str(path) in str(error.value)
    assert not trace.exists()
    pickle.loads(pickle.dumps(bomb))  # it would have run
    assert trace.exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_numbers_and_texts_come_through(tmp_path: Path, zipped: bool) -> None:
    value = {"rank": 0, "a": torch.arange(6).reshape(2, 3), "records": [{"key": "primary", "none": None}]}
    torch.save(value, tmp_path / "größe.pt", _use_new_zipfile_serialization=zipped)
    found = load_tensors(tmp_path / "größe.pt")
    assert torch.equal(found.pop("a"), value.pop("a"))
    assert found == value


def test_broken_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.pt"
    torch.save({"a": torch.arange(10_000)}, path)
    content = path.read_bytes()
    for broken, words in (
        (b"", "is empty"),
        (content[: len(content) // 2], "cut off"),
        (b"\xff\xfe\x00nonsense", "is broken, or holds pickled"),
        (b"PK\x05\x06" + bytes(18), "cannot be read as a .pt file"),
    ):
        path.write_bytes(broken)
        with pytest.raises(BadInput, match=words) as error:
            load_tensors(path)
        assert "\n" not in str(error.value)
