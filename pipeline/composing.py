"""Hydra composes the config of each point of a sweep twice: all of them before the first runs, so that a mistake in the
last is found at once, and each again to run it, which is most of what a short point takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.plugins.sweeper import Sweeper
from omegaconf import DictConfig

MOST = 200
"""Configs that are kept; the points of a larger sweep, and those that other processes run, are composed again."""


@contextmanager
def composed_once() -> Iterator[None]:
    """Within the block a sweep's config that was composed to be checked is the one that runs, once: a point that has run
    has changed its own, so that an equal one is composed again."""
    compose, check = ConfigLoaderImpl.load_sweep_config, Sweeper.validate_batch_is_legal
    kept: dict[tuple[str, ...], DictConfig] = {}
    checking: list[Sweeper] = []

    def load_sweep_config(self: ConfigLoaderImpl, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        point = tuple(sweep_overrides)
        if not checking:
            return kept.pop(point) if point in kept else compose(self, master_config, sweep_overrides)
        config = compose(self, master_config, sweep_overrides)
        if len(kept) < MOST:
            kept[point] = config
        return config

    def validate_batch_is_legal(self: Sweeper, batch: Sequence[Sequence[str]]) -> None:
        checking.append(self)
        try:
            check(self, batch)
        finally:
            checking.pop()

    ConfigLoaderImpl.load_sweep_config = load_sweep_config  # type: ignore[method-assign]
    Sweeper.validate_batch_is_legal = validate_batch_is_legal  # type: ignore[method-assign]
    try:
        yield
    finally:
        ConfigLoaderImpl.load_sweep_config = compose  # type: ignore[method-assign]
        Sweeper.validate_batch_is_legal = check  # type: ignore[method-assign]
