"""Load statistics: what they say, and that the artifact keeps all of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stages import paths
from stages.load import LoadStats, read_load, write_load

COUNT = np.arange(24, dtype=np.int64).reshape(2, 3, 4)


def test_sizes_and_total() -> None:
    load = LoadStats(COUNT)
    assert (load.windows, load.layers, load.experts) == (2, 3, 4)
    assert load.total().dtype == np.float64
    assert load.total().tolist() == (COUNT[0] + COUNT[1]).tolist()


@pytest.mark.parametrize("labels", [(), ("first, with a comma", 'and "quotes" é')])
@pytest.mark.parametrize("current", [None, np.array([[0, 1, 2, 3, -1]] * 3)])
def test_the_artifact_keeps_everything(tmp_path: Path, labels: tuple[str, ...], current: np.ndarray | None) -> None:
    load = LoadStats(COUNT, labels, current)
    assert write_load(tmp_path, load) == (paths.LOAD, paths.LOAD_PREVIEW)
    found = read_load(tmp_path / paths.LOAD)
    np.testing.assert_array_equal(found.logical_count, COUNT)
    assert found.logical_count.dtype == np.int64
    assert found.labels == labels
    if current is None:
        assert found.current is None
    else:
        np.testing.assert_array_equal(found.current, current)


def test_the_preview_holds_totals(tmp_path: Path) -> None:
    write_load(tmp_path, LoadStats(COUNT))
    header, *rows = (tmp_path / paths.LOAD_PREVIEW).read_text(encoding="utf-8").splitlines()
    assert header == "layer,expert,count"
    assert rows[:5] == ["0,0,12", "0,1,14", "0,2,16", "0,3,18", "1,0,20"]
    assert len(rows) == 12


def test_the_same_loads_have_the_same_digest(tmp_path: Path) -> None:
    current = np.array([[3, 2, 1, 0]] * 3)
    load = LoadStats(COUNT, ("a", "b"), current)
    # Arrays in other memory order are the same loads.
    other = LoadStats(np.asfortranarray(COUNT), ("a", "b"), np.asfortranarray(current))
    digests = set()
    for name, value in (("x", load), ("y", load), ("z", other)):
        write_load(tmp_path / name, value)
        digests.add(paths.sha256(tmp_path / name))
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("count", "labels"), [(COUNT[0], ()), (COUNT.astype(np.int32), ()), (COUNT, ("one label for two windows",))]
)
def test_what_is_no_load_is_a_bug(count: np.ndarray, labels: tuple[str, ...]) -> None:
    with pytest.raises(AssertionError):
        LoadStats(count, labels)
