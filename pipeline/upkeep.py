"""The commands that keep a tracking store in order: `moesaic sync` and `moesaic gc`."""

from __future__ import annotations

import argparse
import sys
from contextlib import suppress
from typing import Any

from pipeline.addresses import from_command_line


def commands(subparsers: Any) -> list[argparse.ArgumentParser]:
    """Add the commands to those of `moesaic`; they work on a store."""
    sync = subparsers.add_parser("sync", help="bring into the store what runs kept for it while it was away")
    sync.add_argument("run", nargs="?", metavar="RUN", help="a run, its beginning, or a run folder (default: all)")
    sync.set_defaults(command=_sync)

    gc = subparsers.add_parser("gc", help="remove what no kept run needs; shows it first, and touches nothing")
    gc.add_argument("--delete", action="store_true", help="do it (default: only say what would be removed)")
    gc.add_argument("--older-than", type=_days, metavar="DAYS", help="also runs that ended longer ago")
    gc.add_argument("--failed", action="store_true", help="also runs that failed or were killed")
    gc.set_defaults(command=_gc)
    return [sync, gc]


def _days(text: str) -> float:
    with suppress(ValueError):
        if 0 <= (value := float(text)) < float("inf"):
            return value
    raise argparse.ArgumentTypeError(f"{text} is no number of days")


def _sync(options: argparse.Namespace) -> int:
    from pipeline.store import Store
    from pipeline.sync import sync

    uri = from_command_line(options.tracking_uri, options.tracking)
    sync(Store(uri, options.experiment, create=False), options.run, _say)
    return 0


def _gc(options: argparse.Namespace) -> int:
    from pipeline.gc import collect, freed, report, sweep_up
    from pipeline.headline import bytes_text
    from pipeline.orphans import reap_orphans
    from pipeline.store import Store

    store = Store(from_command_line(options.tracking_uri, options.tracking), options.experiment, create=False)
    reap_orphans(store)  # a run that was killed does not go on
    found = collect(store, options.older_than, failed=options.failed)
    size = bytes_text(freed(found.paths))
    if options.delete:
        sweep_up(store, found)
    report(found, size, _say, removed=options.delete)
    return 0


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
