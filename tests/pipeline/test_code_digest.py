"""The code digest: it follows imports, and words alone do not change it."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import pytest

from pipeline import code_digest as module
from stages.errors import BadInput

FILES = {
    "__init__.py": "",
    "stage.py": 'from {p}.helper import f\n\ndef run(config):\n    """Docs."""\n    import {p}.lazy\n    return f()\n',
    "helper.py": "from .deep import g\n\ndef f():\n    return g()  # comment\n",
    "deep.py": 'X = 1\n"""Says what X is."""\n\ndef g():\n    return X\n',
    "lazy.py": "Y = 1\n",
    "unrelated.py": "Z = 1\n",
}
NAMES = itertools.count()


def digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **changes: tuple[str, str]) -> str:
    """The digest of a small package, with `old -> new` replaced in some of its files."""
    name = "toypackage"
    root = tmp_path / str(next(NAMES))
    (root / name).mkdir(parents=True)
    for file, text in FILES.items():
        old, new = changes.get(file.removesuffix(".py"), ("", ""))
        assert old in text
        (root / name / file).write_text((text.replace(old, new) if old else text).replace("{p}", name))
    monkeypatch.syspath_prepend(str(root))
    for cached in (module.code_digest, module._source, module._read):
        cached.cache_clear()
    for loaded in [m for m in sys.modules if m.startswith(name)]:
        del sys.modules[loaded]
    return module.code_digest(f"{name}.stage.run")


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"helper": ("# comment", "# other words")}, True),
        ({"stage": ('"""Docs."""', '"""More docs."""')}, True),
        ({"stage": ('    """Docs."""\n', "")}, True),
        ({"deep": ('"""Says what X is."""', '"""Other."""')}, True),
        ({"helper": ("def f():\n    return", "def f():\n\n\n    return")}, True),
        ({"unrelated": ("Z = 1", "Z = 2")}, True),
        ({"stage": ("return f()", "return f() + 1")}, False),
        ({"helper": ("return g()", "return 2 * g()")}, False),
        ({"deep": ("X = 1", "X = 2")}, False),
        ({"lazy": ("Y = 1", "Y = 2")}, False),
    ],
    ids=str,
)
def test_what_changes_the_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, tuple[str, str]], same: bool
) -> None:
    assert (digest(tmp_path, monkeypatch) == digest(tmp_path, monkeypatch, **changes)) is same


def test_a_module_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest(tmp_path, monkeypatch)
    with pytest.raises(BadInput, match=r"the module toypackage\.nothing of a stage's target cannot be found"):
        module.code_digest("toypackage.nothing.run")
