"""Nothing that a value holds becomes HTML, wherever it is put."""

from __future__ import annotations

import pytest

from pipeline.report.markup import Html, join, table, tag, text, without_credentials
from tests.pipeline.report.parsed import parse

HOSTILE = [
    "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "' onload='alert(1)", "</style><script>", "&lt;b&gt;",
    "<!--", "]]>", "a & b", "\x00<b\x00>", "\u202eevil", "\udc80 name",
]  # fmt: skip


@pytest.mark.parametrize("value", HOSTILE)
def test_a_value_stays_text(value: str) -> None:
    page = parse(tag("div", value, tag("p", value, title=value, data_x=value), class_=value))
    outer = page.one("div")
    assert [node.name for node in page.all()] == ["div", "p"]
    inner = outer.one("p")
    assert list(inner.attributes) == ["title", "data-x"]
    for shown in (inner.text, inner.attributes["title"], outer.attributes["class"]):
        assert shown == value.translate({0: "\ufffd", 0x202E: "\ufffd", 0xDC80: "?"})
    tag("div", value).encode("utf-8")


@pytest.mark.parametrize(
    ("built", "html"),
    [
        (tag("p", "a", None, 3, 2.5), "<p>a32.5</p>"),
        (tag("p", tag("b", "x"), Html("&times;")), "<p><b>x</b>&times;</p>"),
        (tag("p", class_=None, hidden=True, title=False), "<p hidden></p>"),
        (tag("meta", name="viewport", http_equiv="x"), '<meta name="viewport" http-equiv="x">'),
        (tag("img", src="data:x", alt=""), '<img src="data:x" alt="">'),
        (tag("line", stroke_width=0), '<line stroke-width="0"></line>'),
        (join("<", None, tag("i")), "&lt;<i></i>"),
        (text(7), "7"),
    ],
)
def test_elements(built: Html, html: str) -> None:
    assert built == html


def test_a_table_has_its_cells_in_order() -> None:
    found = parse(table(("a", "<b>"), [("x", tag("code", "1")), ("y", "2")], numbers=(1,)))
    assert [cell.text for cell in found.all("th")] == ["a", "<b>"]
    assert [cell.text for cell in found.all("td")] == ["x", "1", "y", "2"]
    assert [cell.text for cell in found.all("td", class_="n")] == ["1", "2"]


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("postgresql://me:secret@host/db", "postgresql://me:***@host/db"),
        ("see http://:pw@h and https://u:p%40w@h/x", "see http://:***@h and https://u:***@h/x"),
        ("tracking.uri=&#x27;sqlite:////x/y.db&#x27;", "tracking.uri=&#x27;sqlite:////x/y.db&#x27;"),
        ("http://u:p@ss@host/x", "http://u:***@host/x"),
        ("pg://h/d?user=me&amp;password=s3&amp;x=1", "pg://h/d?user=me&amp;password=***&amp;x=1"),
        ("pg://h/d?sslPassword=s3 collect.tokens=8", "pg://h/d?sslPassword=*** collect.tokens=8"),
        ("http://host:5000/a@b", "http://host:5000/a@b"),
        ("http://host:5000 me@example.org", "http://host:5000 me@example.org"),
    ],
)
def test_passwords_of_addresses_are_masked(given: str, shown: str) -> None:
    assert without_credentials(given) == shown
