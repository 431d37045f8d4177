"""Hydra composes the config of each point of a sweep twice: all of them before the first runs, so that a mistake in the
last is found at once, and each again to run it, which is most of what a short point takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from omegaconf import DictConfig, OmegaConf

MOST = 200
"""Configs that are kept; the points of a larger sweep, and those that other processes run, are composed again."""


@contextmanager
def composed_once() -> Iterator[None]:
    """Within the block a sweep's config that was composed to be checked is the one that runs."""
    compose = ConfigLoaderImpl.load_sweep_config
    kept: dict[tuple[str, ...], DictConfig] = {}

    def load_sweep_config(self: ConfigLoaderImpl, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        point = tuple(sweep_overrides)
        earlier = kept.pop(point, None)
        ran = earlier is not None and OmegaConf.is_readonly(earlier.hydra)  # a search may try a point twice
        if earlier is not None and not ran:
            return earlier
        config = compose(self, master_config, sweep_overrides)
        if len(kept) < MOST:
            kept[point] = config
        return config

    ConfigLoaderImpl.load_sweep_config = load_sweep_config  # type: ignore[method-assign]
    try:
        yield
    finally:
        ConfigLoaderImpl.load_sweep_config = compose  # type: ignore[method-assign]
