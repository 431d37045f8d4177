"""The balance artifact: read as written, and what is asked of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stages import paths
from stages.gpu_balance import GpuBalance, read_gpu_balance, write_gpu_balance

BALANCE = GpuBalance(
    before=np.array([[4.0, 0.0], [1.0, 3.0]]),
    after=np.array([[2.0, 1.0, 1.0], [4 / 3] * 3]),
    bound=np.array([1.5, 4 / 3]),
)


def test_it_is_read_as_written(tmp_path: Path) -> None:
    assert write_gpu_balance(tmp_path, BALANCE) == (paths.GPU_BALANCE,)
    found = read_gpu_balance(tmp_path / paths.GPU_BALANCE)
    for name in ("before", "after", "bound"):
        np.testing.assert_array_equal(getattr(found, name), getattr(BALANCE, name))
    digest = paths.sha256(tmp_path / paths.GPU_BALANCE)
    write_gpu_balance(tmp_path, BALANCE)
    assert paths.sha256(tmp_path / paths.GPU_BALANCE) == digest


@pytest.mark.parametrize(
    ("layer", "before", "after", "bound"),
    [(0, [3.0, 0.0, 0.0], [1.5, 0.75, 0.75], 1.125), (1, [0.75, 2.25, 0.0], [1.0, 1.0, 1.0], 1.0)],
)
def test_a_layer_is_told_over_its_mean_after(layer: int, before: list[float], after: list[float], bound: float) -> None:
    found = BALANCE.of_layer(layer)
    np.testing.assert_allclose(found[0], before)
    np.testing.assert_allclose(found[1], after)
    assert found[2] == pytest.approx(bound)
    assert BALANCE.least_even == 0


def test_a_layer_without_load_is_nothing() -> None:
    empty = GpuBalance(np.zeros((1, 2)), np.zeros((1, 2)), np.zeros(1))
    before, after, bound = empty.of_layer(0)
    assert before.sum() == after.sum() == bound == 0
