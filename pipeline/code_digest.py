"""SHA-256 over the code of a stage: its module and all that this imports of the same package, comments and docstrings
left out, so that an edit of words alone reruns nothing."""

from __future__ import annotations

import ast
import hashlib
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from stages.errors import BadInput


@cache
def code_digest(target: str) -> str:
    """`target`: dotted path of the stage function, `package.module.function`."""
    module = target.rpartition(".")[0]
    digest = hashlib.sha256(target.encode())
    for name, path in sorted(_modules(module).items()):
        digest.update(f"{name}\0{_read(path)[1]}\n".encode())
    return digest.hexdigest()


def _modules(start: str) -> dict[str, Path]:
    """Module name -> source file: `start`, its parent packages, and what they import of their top-level package."""
    package = start.partition(".")[0]
    found: dict[str, Path] = {}
    todo = {start}
    while todo:
        name = todo.pop()
        if name in found or (path := _source(name)) is None:
            continue
        found[name] = path
        todo.update(_parents(name))
        todo.update(m for m in _imports(name, path) if m.partition(".")[0] == package)
    if start not in found:
        raise BadInput(f"pipeline: the module {start} of a stage's target cannot be found.")
    return found


def _parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts))]


@cache
def _source(name: str) -> Path | None:
    """The source file of a module, found without importing it (that could import torch)."""
    package, *rest = name.split(".")
    spec = find_spec(package)
    if spec is None:
        return None
    if not rest:
        return Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None
    for folder in spec.submodule_search_locations or []:
        stem = Path(folder, *rest)
        for file in (stem / "__init__.py", stem.with_name(stem.name + ".py")):
            if file.is_file():
                return file
    return None


@cache
def _read(path: Path) -> tuple[list[tuple[int, str, tuple[str, ...]]], str]:
    """The imports of a file anywhere in it, as (level, module, names), and its code without words."""
    tree = ast.parse(path.read_bytes())
    imports: list[tuple[int, str, tuple[str, ...]]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports.extend((0, alias.name, ()) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            imports.append((node.level, node.module or "", tuple(alias.name for alias in node.names)))
        elif isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [s for s in node.body if not _is_text(s)] or [ast.Pass()]
    return imports, ast.dump(tree)


def _imports(name: str, path: Path) -> set[str]:
    """Names that may be modules: what `import` and `from … import` mention anywhere in the file."""
    base = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found: set[str] = set()
    for level, module, names in _read(path)[0]:
        origin = module
        if level:
            parts = base.split(".")
            origin = ".".join([*parts[: len(parts) - level + 1], *filter(None, [module])])
        found.add(origin)
        found.update(f"{origin}.{alias}" for alias in names)
    return found


def _is_text(statement: ast.stmt) -> bool:
    """A docstring, or a string that documents the line above it."""
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )
