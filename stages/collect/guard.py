"""Whatever a parser raises on broken bytes becomes one sentence, while a source is opened and while it is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from stages.collect.dump import Block, Dump
from stages.errors import BadInput


def guarded(open_source: Callable[[], Dump], path: Path, kind: str) -> Dump:
    """The dump that `open_source` gives, with its errors named; `kind` is what `path` was read as."""
    with _named(path, kind):
        dump = open_source()

    def blocks() -> Iterator[Block]:
        with _named(path, kind):
            yield from dump.blocks()

    return replace(dump, blocks=blocks)


@contextmanager
def _named(path: Path, kind: str) -> Iterator[None]:
    try:
        yield
    except BadInput:
        raise
    except Exception as error:
        raise BadInput(f"{path} cannot be read as {kind}: {_cause(error)}.") from error


def _cause(error: Exception) -> str:
    text = str(error).strip()
    if "pickle" in text or "Python objects" in text:
        return "it holds pickled Python objects, which are never loaded"
    first = text.splitlines()[0].rstrip(".") if text else ""
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
