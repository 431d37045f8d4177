"""Windows by steps, tokens or files, however the rows come."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.collect import windows
from stages.collect.windows import Windows
from stages.errors import BadInput
from tests.stages.collect.helpers import loads, model, run, run_table


def brute_force(keys: list[int], count: np.ndarray) -> list[np.ndarray]:
    found: list[tuple[int, np.ndarray]] = []
    for key, row in zip(keys, count, strict=True):
        if found and found[-1][0] == key:
            found[-1] = (key, found[-1][1] + row)
        else:
            found.append((key, row))
    return [row for _, row in found]


@settings(deadline=None, max_examples=80, derandomize=True)
@given(st.data())
def test_any_cut_into_blocks_gives_the_same_windows(data: st.DataObject) -> None:
    rows, size = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 9))
    by = data.draw(st.sampled_from(["steps", "tokens", "files"]))
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    count = rng.integers(0, 9, (rows, 2, 3))
    tokens = rng.integers(0, 7, rows)
    files = np.sort(rng.integers(0, 4, rows))
    labels = tuple(rng.choice(["a", "b"], rows).tolist())
    before = np.cumsum(tokens) - tokens
    keys = {"steps": np.arange(rows) // size, "tokens": before // size, "files": files // size}[by].tolist()
    found = Windows(by, size)
    at = 0
    while at < rows:
        end = min(rows, at + data.draw(st.integers(1, 6)))
        end = at + int(np.argmax(np.append(files[at:end] != files[at], True)))  # a block is of one file
        part = slice(at, end)
        found.add(count[part], labels[part], tokens[part].astype(float), int(files[at]), owed=count[part].sum(axis=2))
        at = end
    windows_of, names, owed = found.finish()
    np.testing.assert_array_equal(windows_of, brute_force(keys, count))
    np.testing.assert_array_equal(owed, windows_of.sum(axis=2))
    groups = [[n for n, key in enumerate(keys) if key == k] for k in dict.fromkeys(keys)]
    assert names == tuple(
        labels[g[0]] if len({labels[n] for n in g}) == 1 else f"{labels[g[0]]} … {labels[g[-1]]}" for g in groups
    )


def test_windows_of_tokens(tmp_path: Path) -> None:
    count = loads(8)
    tokens = count.sum(axis=2).mean(axis=1) / 2
    np.savez(tmp_path / "x.npz", logical_count=count)
    result, load = run_table(tmp_path / "x.npz", model(top_k=2), window=100, window_by="tokens")
    starts = np.flatnonzero(np.diff((np.cumsum(np.rint(tokens)) - np.rint(tokens)) // 100, prepend=-1))
    np.testing.assert_array_equal(load.logical_count, np.add.reduceat(count, starts, axis=0))
    assert 1 < load.windows < 8
    assert "Rows of about 100 tokens make one window" in result.note
    _, synthetic = run(
        tmp_path, model(top_k=2), source="synthetic", windows=6, tokens=50, window=100, window_by="tokens"
    )
    assert (synthetic.logical_count.sum(axis=2) == 200).all()


def test_windows_of_tokens_need_a_number(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"collect\.window=null is not possible with collect.window_by=tokens"):
        run(tmp_path, model(), window_by="tokens")


def test_more_than_memory_should_hold_is_refused_with_a_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "x.npy", loads(50))
    monkeypatch.setattr(windows, "MOST_BYTES", 1000)
    with pytest.raises(BadInput, match=r"add up several into one with collect\.window"):
        run_table(tmp_path / "x.npy", model())
    assert run_table(tmp_path / "x.npy", model(), window=10)[1].windows == 5
