"""Functions of expert maps against loops that say the same plainly; reading maps, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from stages.errors import BadInput
from stages.expert_map import (
    EMPTY,
    check_map,
    contiguous_map,
    counts_per_rank,
    duplicate_replicas,
    moved_slots,
    read_map,
    replica_counts,
    slots_for,
    slots_per_rank,
)

MAP = [[0, 1, 2, 0], [2, 1, 0, -1]]


@st.composite
def pairs(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Two random maps with empty slots, the number of experts, and the number of ranks."""
    layers, ranks, per_rank = (draw(st.integers(1, n)) for n in (3, 4, 4))
    experts = draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    old, new = (rng.integers(EMPTY, experts, (layers, ranks * per_rank)) for _ in range(2))
    return old, new, experts, ranks


def test_contiguous_map_wraps_around() -> None:
    assert contiguous_map(2, 3, 7).tolist() == [[0, 1, 2, 0, 1, 2, 0]] * 2


@pytest.mark.parametrize(
    ("experts", "redundant", "ranks", "slots"),
    [(8, 0, 4, 8), (8, 1, 4, 12), (8, 4, 4, 12), (7, 0, 8, 8), (256, 32, 32, 288), (1, 0, 1, 1)],
)
def test_slots_are_rounded_up_to_the_ranks(experts: int, redundant: int, ranks: int, slots: int) -> None:
    assert slots_for(experts, redundant, ranks) == slots


def test_slots_must_divide_over_the_ranks() -> None:
    assert slots_per_rank(np.array(MAP), 2) == 2
    with pytest.raises(BadInput, match="4 slots do not divide evenly over 3 ranks"):
        slots_per_rank(np.array(MAP), 3)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(pairs())
def test_counts_are_what_loops_count(case: tuple[np.ndarray, np.ndarray, int, int]) -> None:
    old, new, experts, ranks = case
    layers, slots = old.shape
    per_rank = slots // ranks
    counts = np.zeros((layers, ranks, experts), dtype=np.int64)
    moved, duplicates = 0, 0
    for layer in range(layers):
        for rank in range(ranks):
            local = slice(rank * per_rank, (rank + 1) * per_rank)
            held, wanted = old[layer, local].tolist(), new[layer, local].tolist()
            moved += len({e for e in wanted if e != EMPTY} - set(held))
            for position, expert in enumerate(held):
                if expert != EMPTY:
                    counts[layer, rank, expert] += 1
                    duplicates += expert in held[:position]
    np.testing.assert_array_equal(counts_per_rank(old, experts, ranks), counts)
    np.testing.assert_array_equal(replica_counts(old, experts), counts.sum(axis=1))
    assert duplicate_replicas(old, experts, ranks) == duplicates
    assert moved_slots(old, new, experts, ranks) == moved
    assert moved_slots(old, old, experts, ranks) == 0


@pytest.mark.parametrize(
    ("expert_map", "complete", "message"),
    [
        ([0, 1], True, "place.path has shape [2]; a map of layers x slots was expected."),
        ([[0, 1, 2]], True, "3 slots do not divide evenly over 2 ranks."),
        ([[0, 1, 2, 2], [0, 3, 1, 2]], True, "layer 1 slot 1 holds expert 3; allowed are 0 to 2, and -1"),
        ([[0, 1, 2, -2]], False, "layer 0 slot 3 holds expert -2;"),
        ([[0, 1, 2, 0], [0, 1, -1, 1]], True, "place.path: layer 1 holds expert 2 in no slot."),
    ],
)
def test_bad_maps_are_named(expert_map: list[Any], complete: bool, message: str) -> None:
    with pytest.raises(BadInput) as caught:
        check_map(np.array(expert_map), 3, 2, "place.path", complete=complete)
    assert message in str(caught.value)


def test_good_maps_pass() -> None:
    check_map(np.array(MAP), 3, 2, "x")
    check_map(np.array([[0, -1]]), 3, 2, "x", complete=False)


def write(folder: Path, kind: str) -> Path:
    """MAP in a file of each format; the path."""
    path = folder / f"map.{kind.split('-')[-1]}"
    array = np.array(MAP, dtype=np.int32)
    if kind == "object-json":
        path.write_text(json.dumps({"physical_to_logical_map": MAP}), encoding="utf-8")
    elif kind == "list-json":
        path.write_text(json.dumps(MAP), encoding="utf-8")
    elif kind == "safetensors":
        save_file({"physical_to_logical_map": array, "current": array + 1}, path)
    elif kind == "npy":
        np.save(path, array)
    else:
        np.savez(path, physical_to_logical_map=array, other=array + 1)
    return path


@pytest.mark.parametrize("kind", ["object-json", "list-json", "safetensors", "npy", "npz"])
def test_every_format_reads_the_same(tmp_path: Path, kind: str) -> None:
    found = read_map(write(tmp_path, kind), "place.path")
    assert found.tolist() == MAP
    assert found.dtype == np.int64


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("map.json", b'{"other": [[0]]}', "has no physical_to_logical_map."),
        ("map.json", b"{", "cannot be read: "),
        ("map.json", b"[[0, 1], [2]]", "cannot be read: "),
        ("map.json", b'"text"', "of shape []; whole numbers"),
        ("map.json", b"[[0.5, 1]]", "holds a float64 array of shape [1, 2]; whole numbers of shape [layers, slots]"),
        ("map.json", b"[[true, false]]", "holds a bool array"),
        ("map.json", b"[0, 1]", "holds a int64 array of shape [2]"),
        ("map.npy", b"not numpy", "cannot be read: "),
        ("map.npz", b"not numpy", "cannot be read: "),
        ("map.safetensors", b"short", "cannot be read: "),
        ("map.txt", b"", "is no placement file; allowed are .json, .safetensors, .npy and .npz."),
    ],
)
def test_files_that_hold_no_map_are_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(BadInput) as caught:
        read_map(path, "place.current")
    assert str(caught.value).startswith(f"place.current={path} ")
    assert message in str(caught.value)


def test_files_without_the_map_and_missing_ones_are_refused(tmp_path: Path) -> None:
    save_file({"other": np.zeros((1, 1))}, tmp_path / "a.safetensors")
    np.savez(tmp_path / "a.npz", other=np.zeros((1, 1)))
    np.save(tmp_path / "a.npy", np.array([{"pickled": 1}]), allow_pickle=True)
    for name, message in (
        ("a.safetensors", "has no physical_to_logical_map"),
        ("a.npz", "has no physical_to_logical_map"),
        ("a.npy", "cannot be read"),
        ("none.json", "does not exist"),
    ):
        with pytest.raises(BadInput, match=message):
            read_map(tmp_path / name, "place.path")


def test_files_of_every_engine_are_placements(tmp_path: Path) -> None:
    from stages.engine_formats import FORMATS, export_placement
    from stages.engine_formats.stored import Outgoing

    rows = np.array([[0, 1, 2, 3, 1, 2], [3, 0, 2, 1, 2, 3]])
    for engine, kind in FORMATS.items():
        path = tmp_path / f"{engine}{kind.endings[-1]}"
        export_placement(engine, path, Outgoing(rows, 4, 3))
        found = read_map(path, "place.path").reshape(2, 3, 2)
        np.testing.assert_array_equal(np.sort(found), np.sort(rows.reshape(2, 3, 2)))
    np.savez(tmp_path / "omni.npz", placement=np.load(tmp_path / "omni.npy"))
    np.testing.assert_array_equal(read_map(tmp_path / "omni.npz", "x"), read_map(tmp_path / "omni.npy", "x"))
