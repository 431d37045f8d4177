"""Links of the docs lead somewhere: files that are there, and headings that a page has. Other sites are not asked."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest

from tests.docs.pages import DOCUMENTS, PAGES, ROOT, anchors, links


def broken(page: Path, target: str) -> str:
    """What is wrong with a link of a page; empty if nothing is."""
    address = urlparse(target)
    if address.scheme:
        well = address.scheme == "https" and "." in address.netloc
        return "" if well else "an address of another site begins with https:// and has a host"
    file = (page.parent / unquote(address.path)).resolve() if address.path else page
    if not file.is_relative_to(ROOT) or not file.exists():
        return "there is no such file"
    if not address.fragment:
        return ""
    if file.suffix != ".md":
        return "only Markdown has headings"
    return "" if address.fragment in anchors(file.read_text(encoding="utf-8")) else "there is no such heading"


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    wrong = {target: why for target in links(page.read_text(encoding="utf-8")) if (why := broken(page, target))}
    assert wrong == {}


def test_every_page_can_be_reached() -> None:
    """From the README, by following links."""
    reached, todo = set(), [ROOT / "README.md"]
    while todo:
        page = todo.pop()
        if page in reached:
            continue
        reached.add(page)
        for target in links(page.read_text(encoding="utf-8")):
            path = urlparse(target).path
            file = (page.parent / path).resolve()
            if path and not urlparse(target).scheme:
                todo += [file] if file.suffix == ".md" else sorted(file.glob("*.md"))  # a folder is a page of its files
    assert set(PAGES) - reached == set()


def test_a_broken_link_is_seen() -> None:
    page = ROOT / "README.md"
    assert broken(page, "docs/no_such_page.md") == "there is no such file"
    assert broken(page, "docs/loads.md#no-such-heading") == "there is no such heading"
    assert broken(page, "#data") == broken(page, "docs/loads.md#what-is-found-wrong") == ""
    assert broken(page, "../elsewhere.md") == "there is no such file"
    assert broken(page, "http://example") == "an address of another site begins with https:// and has a host"
    assert links("[a](b.md) `[c](d)`\n```text\n[e](f)\n```\n") == ["b.md"]
    assert anchors("# A `b.c`: d\n## A b\n## A b\n```\n# no\n```\n") == {"a-bc-d", "a-b", "a-b-1"}
