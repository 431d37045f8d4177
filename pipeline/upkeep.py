"""The commands that keep a tracking store in order: `moesaic sync` and `moesaic gc`."""

from __future__ import annotations

import argparse
import sys
from typing import Any


def commands(subparsers: Any) -> list[argparse.ArgumentParser]:
    """Add the commands to those of `moesaic`; they work on a store."""
    sync = subparsers.add_parser("sync", help="bring into the store what runs kept for it while it was away")
    sync.add_argument("run", nargs="?", metavar="RUN", help="a run, its beginning, or a run folder (default: all)")
    sync.set_defaults(command=_sync)
    return [sync]


def _sync(options: argparse.Namespace) -> int:
    from pipeline.store import Store, tracking_uri
    from pipeline.sync import sync

    sync(Store(tracking_uri(options.tracking_uri), options.experiment, create=False), options.run, _say)
    return 0


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
