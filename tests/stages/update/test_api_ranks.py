"""The engine API between real ranks over gloo."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from torch.multiprocessing.spawn import start_processes

from stages.expert_map import EMPTY, ExpertMap
from tests.stages.direct_reference import golden_cases
from tests.stages.update.engine_ranks import (
    run_golden_cases,
    run_in_the_background,
    run_over_a_bad_link,
    run_some_layers,
    run_updater,
    run_with_other_maps,
)


def start_ranks(function: Callable[..., None], world_size: int, *arguments: object) -> None:
    """`function(rank, world_size, …)` in a process a rank, forked from a server that has torch imported already."""
    multiprocessing.set_forkserver_preload([function.__module__])
    start_processes(function, (world_size, *arguments), world_size, start_method="forkserver")


@pytest.mark.parametrize("world_size", [2, 4])
def test_golden_cases_move_the_right_weights(world_size: int, tmp_path: Path) -> None:
    cases = [case for case in golden_cases() if case.world_size == world_size]
    assert len(cases) >= 2
    start_ranks(run_golden_cases, world_size, str(tmp_path), cases)


def test_updater_goes_from_map_to_map(tmp_path: Path) -> None:
    """Random maps with replicas and empty slots; dense layers in between are left alone; one log line a layer."""
    rng, experts, slots = np.random.default_rng(1), 7, 12

    def random_map() -> ExpertMap:
        extra = rng.integers(0, experts, (6, slots - experts))
        extra[rng.random(extra.shape) < 0.3] = EMPTY
        return rng.permuted(np.hstack([np.tile(np.arange(experts), (6, 1)), extra]), axis=1)

    maps = [random_map() for _ in range(4)]
    maps.append(maps[-1].copy())
    start_ranks(run_updater, 3, str(tmp_path), maps, [1, 2, 4, 5], 3)


@pytest.mark.parametrize("verify", [True, False])
def test_layers_move_in_the_background_and_the_metadata_is_right_after_each_call(verify: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    first = np.hstack([np.tile(np.arange(9), (5, 1)), rng.integers(0, 9, (5, 3))])
    maps = [rng.permuted(first, axis=1) for _ in range(4)]
    start_ranks(run_in_the_background, 3, str(tmp_path), maps, 8, verify)


def test_some_layers_at_a_time(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    maps = [rng.permuted(np.tile(np.arange(6), (4, 1)), axis=1) for _ in range(2)]
    start_ranks(run_some_layers, 2, str(tmp_path), maps)


@pytest.mark.parametrize("at", [3, 4, 6])
def test_a_bad_link_leaves_an_engine_with_all_its_experts(at: int, tmp_path: Path) -> None:
    """Long cycles, and staging for two experts: some wait there when the update stops."""
    rng = np.random.default_rng(4)
    maps = [rng.permuted(np.tile(np.arange(12), (3, 1)), axis=1) for _ in range(2)]
    start_ranks(run_over_a_bad_link, 3, str(tmp_path), maps, at)


def test_ranks_that_are_told_different_maps_move_nothing(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    maps = [rng.permuted(np.tile(np.arange(6), (2, 1)), axis=1) for _ in range(3)]
    start_ranks(run_with_other_maps, 2, str(tmp_path), maps)
