"""The generated tables of the docs are those of the config as it is, and every key has one."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.docs.meanings import meanings
from tests.docs.pages import PAGES, ROOT
from tests.docs.tables import groups, missing, tables_of, written


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_tables_are_fresh(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert written(text) == text, "stale tables: python -m tests.docs.tables writes them anew"
    assert text.count("<!-- table:") == len(tables_of(text)), "a mark is misspelt, or has no end"


def test_every_group_of_keys_and_of_choices_has_a_table() -> None:
    assert missing() == set()
    there = [table for page in PAGES for table in tables_of(page.read_text(encoding="utf-8"))]
    assert len(there) == len(set(there))


@pytest.mark.parametrize("group", groups())
def test_every_key_has_a_meaning(group: str) -> None:
    kinds = [groups()[group]]
    for kind in kinds:
        told = meanings(kind)
        assert list(told) == [name for name in told if told[name].strip(" .")]
        kinds += [
            type(each.default_factory())
            for each in dataclasses.fields(kind)
            if each.default_factory is not dataclasses.MISSING and dataclasses.is_dataclass(each.default_factory())
        ]


def test_a_key_without_a_meaning_is_named() -> None:
    @dataclass
    class Options:
        """Prose: with a colon.

        a, b: two of
              a kind
        other: no field
        """

        a: int = 0
        b: int = 0
        c: int = 0

    with pytest.raises(ValueError, match="Options: its docstring says nothing about c;"):
        meanings(Options)
    Options.__doc__ = f"{Options.__doc__}\n        c: the third"
    assert meanings(Options) == {"a": "two of a kind", "b": "two of a kind", "c": "the third"}


def test_a_stale_table_is_seen() -> None:
    page = "# X\n<!-- table: config verify -->\n| `verify.source` | old |\n<!-- end -->\nafter\n"
    fresh = written(page)
    assert "| `verify.source` | true or false | `true` | make every weight anew" in fresh
    assert fresh.startswith("# X\n<!-- table: config verify -->\n| key |")
    assert fresh.endswith("|\n<!-- end -->\nafter\n")
    assert written(fresh) == fresh
