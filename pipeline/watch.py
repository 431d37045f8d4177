"""`moesaic status --watch`: the status, again and again, until the run has ended or Ctrl-C."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from pipeline.status import look, over, text_of
from pipeline.store import Store

EVERY_SECONDS = 1.0
GOOD = ("done", "verified", "finished")


def watch(store: Store, prefix: str | None, limit: int, *, as_json: bool) -> int:
    """On a terminal what is shown is drawn anew; elsewhere it is written whenever it has changed. 0 if the run that is
    watched ended well; without one Ctrl-C ends it."""
    value: Any = []
    with suppress(KeyboardInterrupt), Screen(as_json=as_json) as show:
        while True:
            value = look(store, prefix, limit)
            show(value)
            if over(value):
                break
            time.sleep(EVERY_SECONDS)
    return 0 if not over(value) or value["status"] in GOOD else 1


class Screen:
    """A context with a function that shows what it is given."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._live: Any = None
        self._last = ""

    def __enter__(self) -> Callable[[Any], None]:
        if not self._as_json and sys.stdout.isatty():
            from rich.live import Live

            self._live = Live(auto_refresh=False, vertical_overflow="crop").__enter__()
        return self._show

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.__exit__(*error)

    def _show(self, value: Any) -> None:
        text = json.dumps(value) if self._as_json else text_of(value)
        if self._live is not None:
            from rich.text import Text

            self._live.update(Text(text, no_wrap=True, overflow="ellipsis"), refresh=True)
        elif text != self._last:
            sys.stdout.write(text + ("\n" if self._as_json else "\n\n"))
            sys.stdout.flush()
        self._last = text
