"""How kernels are compiled and cached, on a kernel that takes no time to compile; and that compiling changes nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
TINY = """
from stages.solvers.kernels.compiled import compiled, inner

@inner
def half(x):
    return x / 2

@compiled
def quarter(x):
    return half(half(x))
"""
READY = """
import sys
import stages.solvers.kernels as kernels
from stages.solvers.kernels import compiled
def call():
    import tiny
    assert tiny.quarter(8.0) == 2.0
kernels._call_each = call
kernels.ready()
import tiny
stats = tiny.quarter.stats
print(sum(stats.cache_hits.values()), sum(stats.cache_misses.values()), compiled.cache_folder())
"""


def run(code: str, folder: Path, **environment: str) -> str:
    """What `code` prints in a process of its own, whose home is `folder` and which finds `tiny` there."""
    (folder / "tiny.py").write_text(TINY)
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("NUMBA_", "XDG_"))}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**inherited, "HOME": str(folder), "PYTHONPATH": f"{ROOT}:{folder}", **environment},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_second_start_takes_kernels_from_the_cache(tmp_path: Path) -> None:
    hits, misses, folder = run(READY, tmp_path).split()
    assert (hits, misses) == ("0", "1")
    assert Path(folder).parent == tmp_path / ".cache" / "moesaic"
    assert run(READY, tmp_path).split() == ["1", "0", folder]


@pytest.mark.parametrize("name", ["NUMBA_CACHE_DIR", "XDG_CACHE_HOME"])
def test_the_cache_lies_where_the_user_says(tmp_path: Path, name: str) -> None:
    folder = run(READY, tmp_path, **{name: str(tmp_path / "elsewhere")}).split()[-1]
    assert Path(folder).is_relative_to(tmp_path / "elsewhere")
    assert not (tmp_path / ".cache").exists()


def test_a_home_that_cannot_be_written(tmp_path: Path) -> None:
    """As in a container with a read-only installation: the folder for temporary files will do."""
    folder = run(READY, tmp_path, HOME="/dev/null", TMPDIR=str(tmp_path)).split()[-1]
    assert Path(folder).parent.parent == tmp_path / f"moesaic-{os.getuid()}"
    assert Path(folder).stat().st_mode & 0o077 == 0


def test_no_place_for_a_cache_at_all(tmp_path: Path) -> None:
    nowhere = "import tempfile; tempfile.tempdir = '/dev/null/none'\n"
    for _ in range(2):
        assert run(nowhere + READY, tmp_path, HOME="/dev/null").split() == ["0", "1", "None"]


def test_a_strangers_cache_is_not_run(tmp_path: Path) -> None:
    stranger = "import os; os.getuid = lambda: 4_000_000_000\n"
    run(READY, tmp_path)
    found = run(stranger + READY, tmp_path, TMPDIR=str(tmp_path)).split()
    assert found[0] == "0"
    assert not found[2].startswith(str(tmp_path / ".cache"))


@pytest.mark.parametrize("content", [b"", b"no pickle", None])
def test_a_broken_cache_is_begun_anew(tmp_path: Path, content: bytes | None) -> None:
    folder = Path(run(READY, tmp_path).split()[-1])
    files = list(folder.rglob("tiny.quarter*.nbc")) + list(folder.rglob("tiny.quarter*.nbi"))
    assert len(files) == 2
    for file in files:
        file.write_bytes(file.read_bytes()[:100] if content is None else content)
    run(READY, tmp_path)
    run(READY, tmp_path)
    assert run(READY, tmp_path).split()[0] == "1"


def test_many_starts_at_once_compile_once(tmp_path: Path) -> None:
    (tmp_path / "tiny.py").write_text(TINY)
    environment = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": f"{ROOT}:{tmp_path}"}
    environment.pop("XDG_CACHE_HOME", None)
    starts = [
        subprocess.Popen([sys.executable, "-c", READY], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    found = [start.communicate()[0].split() for start in starts]
    assert all(start.returncode == 0 for start in starts)
    assert sorted(hits for hits, _, _ in found) == ["0", "1", "1", "1"]


def test_other_code_has_another_folder(tmp_path: Path) -> None:
    changed = "from stages.solvers.kernels import compiled as c; c.numba.__version__ = '0'\n"
    assert run(READY, tmp_path).split()[-1] != run(changed + READY, tmp_path).split()[-1]


def test_a_call_with_other_types_is_an_error_and_compiles_nothing() -> None:
    import numpy as np

    from stages.solvers.kernels import ready
    from stages.solvers.kernels.scratch import greedy_counts

    ready()
    with pytest.raises(TypeError, match="No matching definition"):
        greedy_counts(np.ones(2, dtype=np.float32), 2, 2, np.ones(2, dtype=np.int32))


SEARCH = """
import numpy as np
from stages.solvers.local_search import local_search
from stages.solvers.options import PlaceOptions
from tests.stages.solvers.cases import deepseek_v3, problem
given = problem(deepseek_v3(1)[:, :24], 32, 8, nodes=2)
for options in ({}, {"target_balancedness": 0.97}):
    found = local_search(given, PlaceOptions(max_steps=4, **options), 3)
    print(found.map.tolist(), found.attempts)
"""


def test_compiled_and_interpreted_are_the_same(tmp_path: Path) -> None:
    assert run(SEARCH, tmp_path, NUMBA_DISABLE_JIT="1") == run(
        SEARCH, tmp_path, XDG_CACHE_HOME=os.environ.get("XDG_CACHE_HOME", str(Path("~/.cache").expanduser()))
    )
