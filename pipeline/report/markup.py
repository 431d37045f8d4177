"""HTML from values: whatever is not `Html` already is escaped, in text and in attributes alike."""

from __future__ import annotations

import re
from html import escape
from typing import TypeAlias

VOID = frozenset({"br", "img", "meta"})
UNSEEN = dict.fromkeys((*range(9), 11, 12, *range(14, 32), 127, *range(8234, 8239), *range(8294, 8298)), "�")
"""Control characters, and those that turn the direction of text: neither belongs on a page that people judge by."""
CREDENTIALS = re.compile(
    r"(://[^/\s:@\"'<>]*):[^/\s\"'<>]+@|([?&;]\w*(?:password|token|secret|signature)=)[^&\s\"'<>]+", re.IGNORECASE
)


class Html(str):
    """Text that is HTML: what it holds was escaped where it had to be."""

    __slots__ = ()


Child: TypeAlias = "Html | str | float | None"


def text(value: object) -> Html:
    """`value` as it is read, whatever characters it has."""
    if isinstance(value, Html):
        return value
    clean = str(value).translate(UNSEEN).encode("utf-8", "replace").decode("utf-8")
    return Html(escape(clean, quote=True))


def tag(name: str, /, *children: Child, **attributes: object) -> Html:
    """An element. Attributes are written `class_`, `stroke_width`; those that are None or False are left out."""
    parts = [f"<{name}"]
    for key, value in attributes.items():
        if value is True:
            parts.append(f" {key.strip('_').replace('_', '-')}")
        elif value is not None and value is not False:
            parts.append(f' {key.rstrip("_").replace("_", "-")}="{text(value)}"')
    parts.append(">")
    if name not in VOID:
        parts += [text(child) for child in children if child is not None]
        parts.append(f"</{name}>")
    return Html("".join(parts))


def join(*children: Child) -> Html:
    return Html("".join(text(child) for child in children if child is not None))


def table(header: tuple[Child, ...], rows: list[tuple[Child, ...]], *, numbers: tuple[int, ...] = ()) -> Html:
    """`numbers`: columns that are set to the right. On a narrow screen the table scrolls within its own box."""

    def cells(kind: str, row: tuple[Child, ...]) -> Html:
        return tag("tr", *(tag(kind, cell, class_="n" if i in numbers else None) for i, cell in enumerate(row)))

    body = tag("tbody", *(cells("td", row) for row in rows))
    return tag("div", tag("table", tag("thead", cells("th", header)), body), class_="scroll")


def without_credentials(page: str) -> Html:
    """`page` with the passwords of all addresses in it masked."""
    return Html(CREDENTIALS.sub(lambda found: f"{found[1]}:***@" if found[1] is not None else f"{found[2]}***", page))
