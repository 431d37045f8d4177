"""Whatever happens to a file on its way, reading it gives loads or one sentence, and never anything else."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from stages.collect.sources import open_source
from stages.collect.validate import Wanted, check
from stages.engine_formats import FORMATS, export_placement, read_stored
from stages.engine_formats.stored import Outgoing
from stages.errors import BadInput
from tests.stages.collect import engine_files as files
from tests.stages.collect.helpers import WRITERS, model

COUNT = np.random.default_rng(0).integers(0, 90, (6, 3, 4))
MAP = files.some_map(3, 4, 6, np.random.default_rng(1))
FOLDERS = ("stat", "passes", "tokens", "trtllm", "vllm", "omni")
TRIES = 25


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each kind of source."""
    root, rng = tmp_path_factory.mktemp("whole"), np.random.default_rng(2)
    for name in (*FOLDERS, *WRITERS, *FORMATS):
        (root / name).mkdir(exist_ok=True)
    physical = files.physical(COUNT, MAP, rng)
    files.write_stat(root / "stat" / "x.pt", COUNT)
    files.write_passes(root / "passes", files.over_ranks(physical, 2, rng), MAP)
    files.write_passes(root / "tokens", files.over_ranks(physical, 2, rng), MAP, per_token=True)
    files.write_trtllm(root / "trtllm", files.over_ranks(COUNT, 2, rng), [0, 1, 2], top_k=1)
    (root / "vllm" / "x.jsonl").write_text("".join(files.vllm_line(n, row, MAP) for n, row in enumerate(physical)))
    files.write_omni(root / "omni", COUNT, 2)
    for name, (ending, write) in WRITERS.items():
        write(root / name / f"loads{ending}", COUNT)
    for engine, kind in FORMATS.items():
        folder = root / f"placement {engine}"
        folder.mkdir()
        rows = np.array([[0, 1, 2, 3, 1, 2]] * 3)
        export_placement(engine, folder / f"map{kind.endings[-1]}", Outgoing(rows, 4, 3))
    return root


def damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """Cut off, some bytes changed, a piece left out, or a piece twice."""
    at = int(rng.integers(len(content)))
    how = rng.integers(4)
    if how == 0:
        return content[:at]
    if how == 1:
        changed = bytearray(content)
        for place in rng.integers(0, len(content), 4):
            changed[place] = rng.integers(256)
        return bytes(changed)
    if how == 2:
        return content[:at] + content[at + int(rng.integers(1, 20)) :]
    return content[:at] + content[at : at + 30] + content[at:]


@pytest.mark.parametrize("name", [*FOLDERS, *WRITERS, *(f"placement {engine}" for engine in FORMATS)])
def test_a_damaged_file_is_read_or_refused(whole: Path, tmp_path: Path, name: str) -> None:
    rng = np.random.default_rng(sum(name.encode()))
    refused: list[str] = []
    for number in range(TRIES):
        folder = Path(shutil.copytree(whole / name, tmp_path / str(number)))
        every = sorted(folder.iterdir())
        file = every[rng.integers(len(every))]
        file.write_bytes(damaged(file.read_bytes(), rng))
        on_bad = ("error", "drop", "repair")[number % 3]
        try:
            if name.startswith("placement"):
                read_stored(file, "place.path")
            else:
                source = folder if name in FOLDERS else file
                dump = open_source("auto", source, model(), None, strict=on_bad == "error")
                assert check(dump, model(), Wanted(on_bad)).load.logical_count.min() >= 0
        except BadInput as error:
            refused.append(str(error))
    assert refused
    assert not [words for words in refused if "\n" in words]
