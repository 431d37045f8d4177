"""Three small stages with the real contract: numbers are made, doubled, and summed."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from stages.contract import Dataset, Progress, StageResult
from stages.errors import BadInput, Corruption, MoesaicError


@dataclass
class MakeOptions:
    count: int = 3
    path: str | None = None
    label: str = "unused"

    def __post_init__(self) -> None:
        if self.count < 1:
            raise BadInput(f"make.count={self.count} is not possible: it must be at least 1.")


@dataclass
class MakeConfig:
    make: MakeOptions = field(default_factory=MakeOptions)
    seed: int = 0

    def key_config(self) -> dict[str, object]:
        return {"make": {"count": self.make.count}, "seed": self.seed}

    def external_files(self) -> dict[str, Path]:
        return {"make.path": Path(self.make.path)} if self.make.path else {}


def make(config: MakeConfig, inputs: Mapping[str, Path], folder: Path, progress: Progress) -> StageResult:
    numbers = list(range(config.seed, config.seed + config.make.count))
    (folder / "numbers.json").write_text(json.dumps(numbers))
    data = Dataset("numbers", "here", "0" * 64, {"count": len(numbers)})
    return StageResult(("numbers.json",), {"count": len(numbers)}, note="**made**", datasets=(data,), tags={"odd": "1"})


@dataclass
class DoubleOptions:
    factor: float = 2.0
    fail: str = ""


@dataclass
class DoubleConfig:
    double: DoubleOptions = field(default_factory=DoubleOptions)

    def key_config(self) -> dict[str, object]:
        return {"double": {"factor": self.double.factor}}

    def environment(self) -> dict[str, str]:
        return {"device": os.environ.get("TOY_DEVICE", "cpu")}

    def cacheable(self) -> bool:
        return self.double.fail != "never"


def double(config: DoubleConfig, inputs: Mapping[str, Path], folder: Path, progress: Progress) -> StageResult:
    progress("doubling", 0.5)
    if config.double.fail == "error":
        raise MoesaicError("The double stage was told to fail.")
    if config.double.fail == "crash":
        raise ZeroDivisionError("a bug")
    if config.double.fail == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if config.double.fail == "wait":
        (folder.parent / "waiting").touch()
        time.sleep(60)
    numbers = [n * config.double.factor for n in json.loads(inputs["numbers"].read_text())]
    result = StageResult(() if config.double.fail == "forget" else ("doubled.json",), {"total": sum(numbers)})
    if config.double.fail != "forget":
        (folder / "doubled.json").write_text(json.dumps(numbers))
    if config.double.fail == "corrupt":
        raise Corruption("One number is wrong.", result)
    return result


@dataclass
class SumConfig:
    pass


def add_up(config: SumConfig, inputs: Mapping[str, Path], folder: Path, progress: Progress) -> StageResult:
    from matplotlib.figure import Figure

    total = sum(json.loads(inputs["doubled"].read_text()))
    (folder / "sum.json").write_text(json.dumps(total))
    figure = Figure(figsize=(1, 1))
    figure.subplots().plot([0, total])
    return StageResult(("sum.json",), {"sum": total}, {"line": figure}, note="a sum")
