"""Rules of the house that import-linter cannot express."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "numba", "pandas", "pyarrow", "matplotlib", "scipy", "mlflow", "hydra", "omegaconf")
PLANNING = [
    file
    for stage in ("collect", "place", "plan", "replay", "solvers")
    for file in sorted((ROOT / "stages" / stage).rglob("*.py"))
]


def imported(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.update([node.module, *(f"{node.module}.{alias.name}" for alias in node.names)])
    return names


@pytest.mark.parametrize("file", PLANNING, ids=lambda file: str(file.relative_to(ROOT)))
def test_planning_never_imports_torch_distributed(file: Path) -> None:
    assert not {name for name in imported(file) if name.startswith("torch.distributed")}


@pytest.mark.parametrize(
    "module",
    [
        "pipeline.cli",
        "pipeline.attached",
        *(f"stages.{stage}.stage" for stage in ("collect", "place", "plan", "update", "verify", "replay")),
        "stages.update.attached",
        "stages.update",
    ],
)
def test_what_every_start_imports_is_light(module: str) -> None:
    code = f"import sys, {module}; print(*[m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_no_module_is_too_big_to_see_at_once() -> None:
    files = [file for folder in ("stages", "pipeline") for file in (ROOT / folder).rglob("*.py")]
    assert files
    assert [str(file) for file in files if len(file.read_text(encoding="utf-8").splitlines()) > 300] == []
