"""Lists and numbers as messages and notes give them: kept short."""

from __future__ import annotations

from collections.abc import Iterable

SHOWN = 5


def listed(items: Iterable[object], shown: int = SHOWN) -> str:
    """`0, 3, 4, 5, 6 and 534 more`."""
    words = [str(item) for item in items]
    more = f" and {len(words) - shown} more" if len(words) > shown else ""
    return ", ".join(words[:shown]) + more


def numbered(word: str, numbers: Iterable[int]) -> str:
    """`row 3`, or `rows 0, 3, 4, 5, 6 and 534 more`."""
    numbers = list(numbers)
    return f"{word} {numbers[0]}" if len(numbers) == 1 else f"{_plural(word)} {listed(numbers)}"


def many(number: int, word: str) -> str:
    """`1 window`, or `1,024 windows`."""
    return f"{number:,} {word if number == 1 else _plural(word)}"


def _plural(word: str) -> str:
    return f"{word}es" if word.endswith("s") else f"{word}s"
