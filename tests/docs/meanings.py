"""What each key of a config dataclass means, read from its docstring: the one place where it is said."""

from __future__ import annotations

import dataclasses
import inspect
import re
from typing import Any

ENTRY = re.compile(r"(?P<names>[a-z_][a-z0-9_]*(?:, [a-z_][a-z0-9_]*)*): +(?P<meaning>\S.*)")


def meanings(kind: type[Any]) -> dict[str, str]:
    """Field -> meaning, from the lines `field: meaning` of the docstring; lines that are indented more go on with it.

    Raises `ValueError` that names the fields without a meaning.
    """
    fields = [each.name for each in dataclasses.fields(kind)]
    found: dict[str, str] = {}
    named: list[str] = []
    for line in (inspect.getdoc(kind) or "").splitlines():
        entry = ENTRY.fullmatch(line)
        if entry is not None and set(names := entry["names"].split(", ")) <= set(fields):
            named = names
            found.update(dict.fromkeys(names, entry["meaning"]))
        elif named and line.startswith(" "):
            found.update({name: f"{found[name]} {line.strip()}" for name in named})
        else:
            named = []
    if missing := [name for name in fields if name not in found]:
        raise ValueError(
            f"{kind.__module__}.{kind.__name__}: its docstring says nothing about {', '.join(missing)}; "
            "a line `key: meaning` is needed for each."
        )
    return found
