"""The sentences of docs/troubleshooting.md are those of the code. What stands behind a command is also produced, by
test_snippets; here the others are looked up, their fixed parts in the texts of one and the same file or few."""

from __future__ import annotations

import ast
from functools import cache

import pytest

from tests.docs.pages import ROOT, blocks

TEXT = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
SHORTEST = 6


def sentences() -> list[str]:
    found, before = [], None
    for block in blocks(TEXT):
        if block.language == "text" and (before is None or before.language != "console"):
            found += block.text.splitlines()
        before = block
    return found


@cache
def texts() -> tuple[str, ...]:
    """Every text of the code that runs: whole literals, and the fixed parts of those with values in them."""
    found = set()
    for folder in ("stages", "pipeline"):
        for file in (ROOT / folder).rglob("*.py"):
            tree = ast.parse(file.read_text(encoding="utf-8"))
            documentation = {
                id(node.body[0].value)
                for node in ast.walk(tree)
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
                and node.body
                and isinstance(node.body[0], ast.Expr)
            }
            found |= {
                node.value
                for node in ast.walk(tree)
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation
            }
    return tuple(found)


def unknown(sentence: str) -> list[str]:
    """The fixed parts of a sentence that are in no text of the code."""
    parts = [part.strip(" ;") for part in sentence.split("…")]
    told = [part for part in parts if len(part) >= SHORTEST]
    assert told, f"{sentence!r} says nothing fixed"
    return [part for part in told if not any(part in text for text in texts())]


@pytest.mark.parametrize("sentence", sentences())
def test_the_code_says_it(sentence: str) -> None:
    assert unknown(sentence) == []


def test_there_are_sentences_to_look_up() -> None:
    assert len(sentences()) >= 15
    assert len({block.text for block in blocks(TEXT) if block.language == "console"}) >= 9


def test_a_sentence_that_nobody_says_is_seen() -> None:
    assert unknown("rank … was killed by the cat …") == ["was killed by the cat"]
    assert unknown("The sentences of docs/troubleshooting.md are those of the code.")
