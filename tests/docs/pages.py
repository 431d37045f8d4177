"""The pages of the docs, and what a reader can follow or copy in them: links, anchors, blocks of code."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES, *sorted((ROOT / "tests").rglob("*.md"))]

FENCE = re.compile(r"^```(?P<language>\w*)(?: (?P<rest>[^\n]+))?\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\((?P<target>[^)\s]+)\)")
HEADING = re.compile(r"^#{1,6} +(?P<text>.+?) *$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """Fenced text: its language (`console` for commands), what follows the language, and the text."""

    language: str
    rest: str
    text: str

    @property
    def commands(self) -> list[str]:
        """The lines of a `console` block, with lines that end in a backslash joined to the next."""
        return [line for line in self.text.replace("\\\n", "").splitlines() if line.strip()]


def blocks(text: str) -> list[Block]:
    return [Block(found["language"], found["rest"] or "", found["text"]) for found in FENCE.finditer(text)]


def without_blocks(text: str) -> str:
    return FENCE.sub("", text)


def links(text: str) -> list[str]:
    return [found["target"] for found in LINK.finditer(re.sub(r"`[^`\n]*`", "", without_blocks(text)))]


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to the headings."""
    found: dict[str, int] = {}
    out = set()
    for heading in HEADING.finditer(without_blocks(text)):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading["text"])
        slug = re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
        count = found.get(slug, 0)
        found[slug] = count + 1
        out.add(f"{slug}-{count}" if count else slug)
    return out
